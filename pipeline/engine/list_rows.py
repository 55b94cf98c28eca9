"""The step that lists the rows of a source stage. The plan makes two steps of a source: this one, and one that processes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from vlpipe.pipeline.stage import GatherStage, Job, SourceStage, Stage

SAMPLE_ROWS = (
    "sample_rows"  # `ListRows.max_rows` among the recorded parameters, which are those of the source
)
TOTAL = "total.json"  # artifact of `ListRows` with `max_rows`


@dataclass(frozen=True, kw_only=True)
class ListRows(GatherStage):
    """Lists the rows of a source stage, cut in order into shards keyed by content: a longer list shares the full shards.

    max_rows: lists the first ones only; the artifact `total.json` then has the number of all, which may be an upper bound.
    """

    source: SourceStage
    max_rows: int | None = None
    ROWS_ARE: ClassVar[str] = "those of the source"
    ADDED: ClassVar[frozenset[str]] = frozenset({"max_rows"})

    def identity(self, use: str) -> tuple[str | int, ...]:
        return ("rows", *self.source.identity(use))

    def runs(self) -> Stage:
        return self.source

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return self.source.row_schema()

    def run(self, job: Job) -> None:
        if self.max_rows is None:
            for table in self.source.rows():
                job.emit(table)
            return
        bound, seen = self.source.max_rows(), 0
        for table in self.source.rows():
            job.emit(table.slice(0, max(0, self.max_rows - seen)))
            seen += table.num_rows
            if bound is not None and seen >= self.max_rows:
                break
        total = {"rows": seen if bound is None else max(bound, seen)}
        Path(job.artifacts, TOTAL).write_text(json.dumps(total), encoding="utf-8")
