"""Synthetic texts moved to other images: a control that tells what they say of an image from how they are worded.

Two steps: `DrawShuffle` draws a permutation of all rows that have a synthetic text, `ShuffleSynthetic` applies it. Sorted by
a hash of seed and id, each row gets the texts of the next one, and the last row those of the first: no row keeps its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import Out, Reject, ShardWriter, need, ref, reference_columns, with_field
from vlpipe.pipeline.stage import GatherStage, Job, MapStage, Work
from vlpipe.stages.common.batches import draws, without
from vlpipe.stages.common.row import DONORS, TEXTS
from vlpipe.stages.common.scores import with_columns
from vlpipe.stages.common.texts import FlatTexts, to_mask

SYNTH = "synth"
COLUMNS = ("id", "texts", "donors")
# id: of the row that gets the texts; donors: for each text, the ids of the rows that it comes from.
SHUFFLED = pa.schema([("id", pa.string()), ("texts", TEXTS), ref("donors", DONORS)])
PART = pa.schema([("to", pa.int64()), ("texts", TEXTS), ("donors", DONORS)])
FILE = "shuffled.parquet"
COUNT = pa.schema([("num_rows", pa.int64()), ("num_texts", pa.int64())])
PART_ROWS = 1 << 17  # rows sorted at once
GROUP_ROWS = 4096
GROUPS_HELD = 2  # row groups of the artifact in memory; a batch has rows of one or two

Entry = dict[str, Any]
Moved = list[tuple[Entry, list[str]]]  # texts, each with the ids of the rows that it comes from


@dataclass(frozen=True, kw_only=True)
class DrawShuffle(GatherStage):
    """Draws which row gets the synthetic texts of which. Artifact `shuffled.parquet`, for `ShuffleSynthetic` (columns:
    SHUFFLED). Emits one row: the number of rows with a synthetic text, and of these texts.

    The permutation is one random cycle through all rows with a synthetic text; it depends only on `seed` and the rows' ids.
    Raises VlpipeError for fewer than two such rows. Memory: 32 bytes per row, and 150 MB; disk: their texts, twice.
    """

    NAME: ClassVar[str] = "caption.shuffle:DrawShuffle"
    ROWS_ARE: ClassVar[str] = "counts"
    ARTIFACT_REFERENCES: ClassVar[Mapping[str, tuple[str, ...]]] = {FILE: reference_columns(SHUFFLED)}

    seed: int = 0

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "caption.shuffle", id=pa.string(), texts=TEXTS)
        return COUNT

    def run(self, job: Job) -> None:
        order = np.argsort(draws(self.seed, (id_ for ids in _ids(job) for id_ in ids)), kind="stable")
        if len(order) < 2:
            raise VlpipeError(
                f"caption.shuffle: {len(order)} row(s) have a synthetic text, wanted at least two; take the rows of a step "
                "that captions"
            )
        taker = np.empty_like(order)
        taker[order] = np.roll(order, 1)
        num_texts = self._part(job, taker)
        with ShardWriter(f"{job.artifacts}/{FILE}", SHUFFLED, GROUP_ROWS) as writer:
            for number, ids in enumerate(_blocks(_ids(job), PART_ROWS)):
                rows = pq.read_table(_part_path(job, number)).sort_by("to").drop_columns(["to"])
                writer.write(rows.add_column(0, "id", pa.array(ids, pa.string())))
                Path(_part_path(job, number)).unlink()
        job.emit(pa.table([[len(order)], [num_texts]], schema=COUNT))
        job.say(f"{num_texts:,} synthetic texts of {len(order):,} rows, each on another row")

    def _part(self, job: Job, taker: npt.NDArray[np.int64]) -> int:
        """Writes the texts into files by the row that gets them, PART_ROWS rows in each. Returns their number.

        taker: (N,), for each row with a synthetic text, the number of the row that gets its texts.
        """
        start = num_texts = 0
        with ExitStack() as stack:
            parts = [
                stack.enter_context(ShardWriter(_part_path(job, number), PART))
                for number in range(-(-len(taker) // PART_ROWS))
            ]
            for rows in _rows(job):
                moved = [moved_of(row) for row in rows]
                num_texts += sum(map(len, moved))
                to = taker[start : start + len(rows)]
                texts, donors = ([[one[at] for one in each] for each in moved] for at in (0, 1))
                table = pa.table([to, texts, donors], schema=PART)
                for number in np.unique(to // PART_ROWS).tolist():
                    parts[number].write(table.filter(pa.array(to // PART_ROWS == number)))
                start += len(rows)
        return num_texts


@dataclass(frozen=True, kw_only=True)
class ShuffleSynthetic(MapStage):
    """Gives each row the synthetic texts of another row, with their scores and decisions, in place of its own.

    shuffled: `{from: STEP, path: shuffled.parquet}` of a `DrawShuffle` over the same rows. The other texts, and rows without
    a synthetic text, stay as they are. Column `donors` lists the ids of each text's source rows (null for the row's own
    texts), by which `vlpipe forget` finds them. Columns with one value per text are not moved: compute them afterwards.
    Fault: not_in_shuffle (`DrawShuffle` did not read the row).
    """

    NAME: ClassVar[str] = "caption.shuffle:ShuffleSynthetic"

    shuffled: File

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "caption.shuffle", id=pa.string(), texts=TEXTS)
        return with_field(inp, ref("donors", DONORS))

    @contextmanager
    def open(self) -> Iterator[Work]:
        given = load_given(self.shuffled.path, self.shuffled.digest)

        def work(table: pa.Table) -> Out:
            rows = table.select([name for name in COLUMNS if name in table.schema.names]).to_pylist()
            found = given.of([row["id"] for row in rows if has_synth(row)])
            rejects = [
                Reject(
                    row["id"],
                    "fault",
                    "not_in_shuffle",
                    "the shuffle was drawn without this row; give both the same rows",
                )
                for row in rows
                if has_synth(row) and row["id"] not in found
            ]
            kept = without(table, rejects)
            gone = {reject.id for reject in rejects}
            new = [replaced(row, found.get(row["id"], [])) for row in rows if row["id"] not in gone]
            texts, donors = [texts for texts, _ in new], [donors for _, donors in new]
            return Out(
                with_columns(kept, texts=pa.array(texts, TEXTS), donors=pa.array(donors, DONORS)), rejects
            )

        yield work


class Given:
    """The texts that rows get, read from the artifact by row group. Memory: 16 bytes per row, and GROUPS_HELD groups."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._held: dict[int, pa.Table] = {}
        with self._opened() as file:
            need(file.schema_arrow, f"caption.shuffle ({path})", **{f.name: f.type for f in SHUFFLED})
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            ids = (id_ for batch in file.iter_batches(columns=["id"]) for id_ in batch["id"].to_pylist())
            marks = draws(0, ids)
        self._starts = np.cumsum([0, *sizes])
        self._order = np.argsort(marks, kind="stable")
        self._marks = marks[self._order]

    def _opened(self) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self._path, page_checksum_verification=True)
        except (pa.ArrowInvalid, OSError) as error:
            raise VlpipeError(
                f"shuffled: {self._path} cannot be read as Parquet ({error}); wanted {{from: STEP, path: {FILE}}}"
            ) from error

    def of(self, ids: Sequence[str]) -> dict[str, Moved]:
        """Returns id -> its texts, for those of `ids` that are in the artifact."""
        marks = draws(0, ids)
        at = np.searchsorted(self._marks, marks)
        known = at < len(self._marks)
        known[known] = self._marks[at[known]] == marks[known]
        places = np.sort(self._order[at[known]])
        groups = np.searchsorted(self._starts, places, side="right") - 1
        found: dict[str, Moved] = {}
        for group in np.unique(groups).tolist():
            inside = places[groups == group] - self._starts[group]
            for row in self._group(group).take(pa.array(inside)).to_pylist():
                pairs = zip_longest(row["texts"] or (), row["donors"] or ())
                found[row["id"]] = [(entry, givers or []) for entry, givers in pairs]
        return found

    def _group(self, group: int) -> pa.Table:
        if group not in self._held:
            while len(self._held) >= GROUPS_HELD:
                del self._held[next(iter(self._held))]
            with self._opened() as file:
                self._held[group] = file.read_row_group(group)
        return self._held[group]


def has_synth(row: Mapping[str, Any]) -> bool:
    return any(entry["source"] == SYNTH for entry in row["texts"] or ())


def moved_of(row: Mapping[str, Any]) -> Moved:
    """Returns the synthetic texts of a row, each with the ids of the rows it comes from: by default the row itself."""
    pairs = zip_longest(row["texts"] or (), row.get("donors") or ())
    return [(entry, givers or [row["id"]]) for entry, givers in pairs if entry["source"] == SYNTH]


def replaced(
    row: Mapping[str, Any], given: Moved
) -> tuple[list[Entry] | None, list[list[str] | None] | None]:
    """Returns `texts` and `donors` of a row with the texts that it gets, in the places of its synthetic ones.

    More texts than places are appended, fewer leave places out.
    """
    if not has_synth(row):
        return row["texts"], row.get("donors")
    left = iter(given)
    pairs: list[tuple[Entry, list[str] | None]] = []
    for entry, givers in zip_longest(row["texts"], row.get("donors") or ()):
        if entry["source"] != SYNTH:
            pairs.append((entry, givers))
        elif (new := next(left, None)) is not None:
            pairs.append(new)
    pairs += left
    return [entry for entry, _ in pairs], [givers for _, givers in pairs]


@lru_cache(maxsize=1)  # a worker process serves many shards of one step
def load_given(path: str, digest: str) -> Given:
    """Returns the content of a `shuffled.parquet`. digest: of the file; only a key of the cache."""
    return Given(path)


def _rows(job: Job) -> Iterator[list[dict[str, Any]]]:
    """Yields the rows with a synthetic text (`id`, `texts`, `donors` if there is one), a batch at a time."""
    for data in job.inputs:
        for batch in data.batches([name for name in COLUMNS if name in data.schema.names]):
            texts = FlatTexts(batch["texts"])
            mine = to_mask(pc.equal(texts.field("source"), SYNTH))
            yield batch.take(pa.array(np.unique(texts.row[mine]))).to_pylist()


def _ids(job: Job) -> Iterator[list[str]]:
    for rows in _rows(job):
        yield [row["id"] for row in rows]


def _blocks(batches: Iterator[list[str]], size: int) -> Iterator[list[str]]:
    """Yields all ids in lists of `size`; the last one may be shorter."""
    held: list[str] = []
    for ids in batches:
        held += ids
        while len(held) >= size:
            yield held[:size]
            held = held[size:]
    if held:
        yield held


def _part_path(job: Job, number: int) -> str:
    return f"{job.work}/part-{number}.parquet"
