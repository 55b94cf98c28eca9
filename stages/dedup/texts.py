"""The same text on many rows: equal but for case and punctuation, or nearly equal. Which of them stays.

Texts of the best row stay (most pixels, smallest url, smallest id), whatever the order of the shards.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from dataclasses import dataclass
from typing import Annotated, ClassVar

import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import GatherStage, Job
from vlpipe.stages.dedup.decisions import check_input, keep_order, read_rows
from vlpipe.stages.dedup.text_decisions import Entry, write_text_decisions
from vlpipe.stages.dedup.text_forms import normal_form
from vlpipe.stages.dedup.text_minhash import NOT_INSTALLED, near_twins
from vlpipe.stages.row import RESULTS, TEXTS

EXACT, NEAR = "exact_duplicate_text", "near_duplicate_text"
BLOCK_ROWS = 65_536  # rows decided about in one table

Fate = tuple[str, str, float]  # why a text goes, the row whose text stays for it, how alike they are


@dataclass(frozen=True, kw_only=True)
class TextDuplicates(GatherStage):
    """Artifact `texts.parquet` (columns: TEXT_DECISIONS) for `dedup.text_decisions:DropTexts`; emits RESULTS.

    Texts are compared in their normal form (`text_forms.normal_form`). Equal ones are exact_duplicate_text. Near
    ones, near_duplicate_text, share `threshold` (Jaccard) of their 5-character shingles; 0.8 is what Lee et al.
    (https://arxiv.org/abs/2107.06499) take for documents; null: equal ones only. A caption of one word more or
    less than another may well be right for both images: use null where captions are good.
    sources: the texts that are compared; those dropped before are not. All others stay.

    Every dropped text has a witness that stays. Memory: all texts, and 0.6 kB for each that stays.
    """

    threshold: Annotated[float, Field(gt=0, le=1)] | None = 0.8
    sources: tuple[str, ...] = ("web",)

    VERSION: ClassVar[int] = 1

    def schema(self, inp: pa.Schema) -> pa.Schema:
        check_input(inp, "dedup.texts")
        need(inp, "dedup.texts", texts=TEXTS)
        return RESULTS

    def preflight(self) -> list[str]:
        missing = self.threshold is not None and importlib.util.find_spec("rensa") is None
        return [NOT_INSTALLED] if missing else []

    def run(self, job: Job) -> None:
        rows = read_rows(job.inputs, "texts")
        first, copies = self._group(rows)
        fates = self._near(first)
        fates.update({entry: fates.get(leader, (EXACT, leader[0], 1.0)) for entry, leader in copies.items()})
        blocks = (rows.slice(start, BLOCK_ROWS) for start in range(0, rows.num_rows, BLOCK_ROWS))
        write_text_decisions(f"{job.artifacts}/texts.parquet", blocks, fates)
        counts = Counter(why for why, _, _ in fates.values())
        num_rows = len(first) + len(copies)
        found = [{"name": why, "value": counts[why], "num_rows": num_rows} for why in (EXACT, NEAR)]
        job.emit(pa.Table.from_pylist(found, RESULTS))
        job.say(f"{num_rows:,} texts, to drop: {EXACT} {counts[EXACT]:,}, {NEAR} {counts[NEAR]:,}")

    def _group(self, rows: pa.Table) -> tuple[dict[str, Entry], dict[Entry, Entry]]:
        """Normal form -> its best entry, best first; and of each other entry the one it equals."""
        first: dict[str, Entry] = {}
        copies: dict[Entry, Entry] = {}
        ids, texts = rows["id"].combine_chunks(), rows["texts"].combine_chunks()
        for row in keep_order(rows).tolist():
            id_ = ids[row].as_py()
            for place, text in enumerate(texts[row].as_py() or ()):
                form = normal_form(text["text"] or "")
                if text["source"] in self.sources and text["kept"] is not False and form:
                    leader = first.setdefault(form, (id_, place))
                    if leader != (id_, place):
                        copies[id_, place] = leader
        return first, copies

    def _near(self, first: dict[str, Entry]) -> dict[Entry, Fate]:
        if self.threshold is None:
            return {}
        owners = list(first.values())
        found = zip(owners, near_twins(list(first), self.threshold), strict=True)
        return {entry: (NEAR, owners[place][0], alike) for entry, (place, alike) in found if place >= 0}
