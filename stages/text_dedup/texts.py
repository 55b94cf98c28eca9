"""Deduplicates texts over all rows: equal except for case and punctuation, or nearly equal.

The text of the best row (most pixels, then smallest id) is kept; the order of shards does not matter.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import Dataset, GatherStage, Job
from vlpipe.stages.common.row import RESULTS, TEXTS
from vlpipe.stages.dedup.row_ids import Names, packed
from vlpipe.stages.text_dedup.decisions import TEXTS_REFERENCES, Entry, write_text_decisions
from vlpipe.stages.text_dedup.forms import normal_form
from vlpipe.stages.text_dedup.minhash import NOT_INSTALLED, near_duplicates

EXACT, NEAR = "exact_duplicate_text", "near_duplicate_text"
BLOCK_ROWS = 65_536  # rows per table of decisions

Fate = tuple[str, str, float]  # why a text is dropped, the row whose text is kept instead, their similarity


@dataclass(frozen=True, kw_only=True)
class TextDuplicates(GatherStage):
    """Finds duplicate texts. Artifact `texts.parquet` (columns: TEXT_DECISIONS), for `text_dedup.decisions:DropTexts`.

    Emits the number of duplicates of each kind (columns: RESULTS).
    Texts are compared in normal form (`forms.normal_form`). Equal texts are dropped as exact_duplicate_text, near ones as
    near_duplicate_text: their 5-character shingles have a Jaccard similarity of at least `threshold` (null: drop equal
    texts only). At 0.8 there are 102 near duplicates among 25,833 alt-texts of CC3M and LAION; the 26 that were inspected
    differ by a word or two, as "pop artist performs on stage" and "synthpop artist performs on stage". Both may be
    right for their images: use null for good captions.
    sources: only texts of these sources are compared and dropped; texts that are already dropped are ignored.

    Every dropped text duplicates a kept one. Memory: all texts, and 2 kB per kept text.
    """

    ROWS_ARE: ClassVar[str] = "figures; decisions are an artifact"

    threshold: Annotated[float, Field(gt=0, le=1)] | None = 0.8
    sources: tuple[str, ...] = ("web",)

    NAME: ClassVar[str] = "dedup.texts:TextDuplicates"
    VERSION: ClassVar[int] = 1
    ARTIFACT_REFERENCES: ClassVar[Mapping[str, tuple[str, ...]]] = TEXTS_REFERENCES

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "text_dedup.texts", id=pa.string(), texts=TEXTS)
        return RESULTS

    def preflight(self) -> list[str]:
        missing = self.threshold is not None and importlib.util.find_spec("rensa") is None
        return [NOT_INSTALLED] if missing else []

    def run(self, job: Job) -> None:
        rows = read_rows(job.inputs)
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
        """Returns two dicts: normal form -> the entry of the best row with it, best row first; other entry -> that entry.

        Entries of other sources, already dropped, or of an empty normal form are in neither.
        """
        first: dict[str, Entry] = {}
        copies: dict[Entry, Entry] = {}
        ids, texts = rows["id"], rows["texts"]
        for row in best_first(rows):
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
        found = zip(owners, near_duplicates(list(first), self.threshold), strict=True)
        return {entry: (NEAR, owners[place][0], alike) for entry, (place, alike) in found if place >= 0}


def read_rows(inputs: Sequence[Dataset]) -> pa.Table:
    """Returns `id`, `texts` and, if present, `width` and `height` of all rows, in input order.

    Raises VlpipeError if an id occurs twice.
    """
    tables = []
    for data in inputs:
        tables.append(data.table([n for n in ("id", "texts", "width", "height") if n in data.schema.names]))
    rows = pa.concat_tables(tables, promote_options="default")
    repeated = Names(packed([rows["id"]])).num_repeated()
    if repeated:
        names = ", ".join(data.name for data in inputs)
        raise VlpipeError(
            f"{repeated} id(s) occur more than once in the rows of {names}: give each row to dedup once"
        )
    return rows


def best_first(rows: pa.Table) -> list[int]:
    """Returns row positions sorted by descending number of pixels, then by id; only by id without width and height."""
    if {"width", "height"} <= set(rows.schema.names):
        sides = (pc.cast(pc.fill_null(rows[n], 0), pa.int64()) for n in ("width", "height"))
        pixels = pc.multiply(*sides)
    else:
        pixels = pa.nulls(rows.num_rows, pa.int64())
    keys = [("pixels", "descending"), ("id", "ascending")]
    return pc.sort_indices(pa.table({"pixels": pixels, "id": rows["id"]}), sort_keys=keys).to_pylist()
