"""Pairs of a source text and the text that is to be written about it: summaries, answers, questions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import ListFile
from vlpipe.pipeline.shard import Out
from vlpipe.pipeline.stage import SourceStage, Work
from vlpipe.pipeline.storage.text_lines import BadLine
from vlpipe.stages.common.row import LISTED, ListIds
from vlpipe.stages.lists.list import text_of
from vlpipe.stages.lists.readers import BATCH_ROWS, read_rows
from vlpipe.stages.lists.text_limit import TextLimit, text_lists
from vlpipe.stages.lists.vqa import normalised
from vlpipe.stages.loading.makers.downstream.asked_answer import SAID

PAIRS = pa.schema([*LISTED, ("said", SAID)])


@dataclass(frozen=True, kw_only=True)
class WrittenPairs(SourceStage):
    """Pairs as rows: the source as the one text (source human), the target in `said` (SAID) with score 1.

    file: a list with columns `source` and `target` (JSON lines, tsv, ...; see `lists.readers`). Targets are normalised as
    `downstream.generated` compares them (`lists.vqa.normalised`). Raises VlpipeError with the line for an empty text.
    """

    NAME: ClassVar[str] = "text_tasks.pairs:WrittenPairs"

    file: ListFile
    source: str = "pairs"
    text_limit: TextLimit = field(default_factory=TextLimit)

    def row_schema(self) -> pa.Schema:
        return PAIRS

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return PAIRS

    def rows(self) -> Iterator[pa.Table]:
        ids, found, name = ListIds(self.source), self._pairs(), Path(self.file.path).name
        while batch := list(islice(found, BATCH_ROWS)):
            urls = [f"{name}:{number}" for number, _, _ in batch]
            sources = [[source] for _, source, _ in batch]
            said = [[{"question": source, "answer": target, "score": 1.0}] for _, source, target in batch]
            columns = {
                "id": ids.of(urls, [f"{source}\n{target}" for _, source, target in batch]),
                "url": urls,
                "texts": text_lists(sources, "human", self.text_limit),
                "said": said,
            }
            yield pa.table(columns, schema=PAIRS)

    def _pairs(self) -> Iterator[tuple[int, str, str]]:
        wanted = {"source": "source", "target": "target"}
        for number, (where, row) in enumerate(read_rows(Path(self.file.path), wanted, None)):
            if isinstance(row, BadLine):
                raise row
            source, target = (text_of(row[name], where).strip() for name in ("source", "target"))
            target = normalised(target)
            if not source or not target:
                raise VlpipeError(f"{where}: the source or the target is empty")
            yield number, source, target

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield lambda rows: Out(rows)
