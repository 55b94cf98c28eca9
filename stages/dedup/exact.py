"""Rows with the same bytes (sha256) and, if asked, with nearly the same picture (pHash): which of them stays.

Hashes find copies, resizes and re-encodes; crops, flips and heavy edits need an embedding (`dedup.faiss`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from vlpipe.pipeline.errors import RowFault
from vlpipe.pipeline.shard import need, read_batches, write_shard
from vlpipe.pipeline.stage import Dataset, GatherStage, Job
from vlpipe.pipeline.store import Store
from vlpipe.stages.dedup.decisions import (
    DECISIONS,
    decide,
    decision_table,
    placed,
    say_counts,
    write_decisions,
)
from vlpipe.stages.dedup.edges import KINDS, Edges, Places, with_copies, write_edges
from vlpipe.stages.dedup.keep import read_rows
from vlpipe.stages.dedup.phash import (
    GRID,
    MAX_DISTANCE,
    colour_gap,
    colour_grid,
    grey,
    has_texture,
    hash_greys,
    pairs_within,
)
from vlpipe.stages.dedup.vectors import number_rows

# What a picture looks like. `hash` is null when it is flat, or could not be decoded (`why` says so).
LOOKS = pa.schema([("hash", pa.uint64()), ("colours", pa.binary(3 * GRID * GRID)), ("why", pa.string())])
BLOCK_ROWS = 256  # pictures decoded before their hashes are computed together
NO_COLOURS = bytes(3 * GRID * GRID)


@dataclass(frozen=True, kw_only=True)
class ExactDuplicates(GatherStage):
    """Emits one decision per row (columns: DECISIONS), made with the defaults of `dedup.decide`.

    Artifacts: `decisions.parquet`, for `dedup.apply`; `edges.parquet`, from which `dedup.decide` makes other decisions.
    phash: also compare pictures; reads the images, so it costs one decode per row.
    max_distance: of 64 bits. 10 found all re-encoded and 96 % of shifted copies of small pictures, 4 half of
    the latter; 200,000 rows take 8 s of one core at 10, 1 s at 7 and below.
    max_colour_gap: twins differ at most so much (0 to 255) in the mean colour of each cell of a 4 x 4 grid;
    255 switches this off. With it 5,000 photos had no false twin at 14 bits, without it 93 pairs at 12.
    """

    phash: bool = False
    max_distance: Annotated[int, Field(ge=0, le=MAX_DISTANCE)] = 10
    max_colour_gap: Annotated[int, Field(ge=0, le=255)] = 16

    VERSION: ClassVar[int] = 2

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "dedup.exact", id=pa.string(), sha256=pa.string())
        if self.phash:
            need(inp, "dedup.exact", image=pa.binary())
        return DECISIONS

    def run(self, job: Job) -> None:
        rows = read_rows(job.inputs, None, "dedup.exact")
        ids, numbers = number_rows(rows.ids, [])
        by_number = np.argsort(numbers)
        sha256 = pa.concat_tables([data.table(["sha256"]) for data in job.inputs])["sha256"]
        leader = same_bytes(sha256.take(pa.array(by_number)))
        looks = read_looks(job).take(pa.array(by_number)) if self.phash else None
        near = self._near(leader, looks)
        edges = with_copies(near, leader, len(ids), "same_bytes")
        write_edges(job.artifacts, ids, len(ids), edges, 1 - self.max_distance / 64 if self.phash else 1.0)
        order = numbers[rows.order]
        twins = decide(len(ids), placed(edges, order), "greedy")
        decisions = decision_table(ids, order, twins, len(ids))
        decisions = _with_faults(decisions, looks).take(pa.array(numbers))
        write_decisions(job.artifacts, decisions)
        job.emit(decisions)
        job.say(say_counts(decisions))

    def _near(self, leader: Places, looks: pa.Table | None) -> Edges:
        """Near pairs by pHash, one row for each set of equal bytes."""
        if looks is None:
            empty = np.empty(0, np.int64)
            return Edges(empty, empty, np.empty(0), np.empty(0, np.int8))
        valid = np.asarray(pc.is_valid(looks["hash"]))
        places = np.flatnonzero(valid & (leader == np.arange(len(leader))))
        hashes = np.asarray(pc.fill_null(looks["hash"], 0), np.uint64)[places]
        a, b, distance = pairs_within(hashes, self.max_distance)
        a, b = places[a], places[b]
        colours = _colours(looks)
        near = colour_gap(colours, colours, a, b) <= self.max_colour_gap
        kind = np.full(near.sum(), KINDS.index("near"), np.int8)
        return Edges(a[near], b[near], 1 - distance[near] / 64, kind)


def same_bytes(sha256: pa.ChunkedArray) -> Places:
    """Per row the first one with the same sha256; a row without one is its own."""
    codes = np.asarray(pc.fill_null(sha256.combine_chunks().dictionary_encode().indices, -1), np.int64)
    unknown = codes < 0
    codes[unknown] = len(codes) + np.flatnonzero(unknown)
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    leader: Places = first[inverse].astype(np.int64)
    return leader


def _with_faults(decisions: pa.Table, looks: pa.Table | None) -> pa.Table:
    """A kept row whose picture could not be compared says why."""
    if looks is None:
        return decisions
    why = pc.coalesce(decisions["why"], looks["why"])
    return decisions.set_column(decisions.schema.get_field_index("why"), "why", why)


def _colours(looks: pa.Table) -> npt.NDArray[np.uint8]:
    """(N, 48)"""
    return np.frombuffer(b"".join(looks["colours"].to_pylist()), np.uint8).reshape(-1, 3 * GRID * GRID)


def read_looks(job: Job) -> pa.Table:
    """LOOKS of all rows in input order. Each shard's part is kept in `job.work`: a kill costs one shard."""
    store = Store(job.work)
    parts = [LOOKS.empty_table()]
    for data in job.inputs:
        for k in range(len(data.shards)):
            parts.append(pq.read_table(store.path(_shard_looks(store, data, k))).cast(LOOKS))
    return pa.concat_tables(parts)


def _shard_looks(store: Store, data: Dataset, k: int) -> str:
    part = f"looks-{data.shards[k].digest}.parquet"  # the digest covers the ids and the sha256 of the images
    if not os.path.exists(store.path(part)):
        images = read_batches(data.store, data.shards[k], [], ["image"])
        write_shard(store, part, (t for batch in images for t in _look_at(batch["image"])), LOOKS)
    return part


def _look_at(images: pa.ChunkedArray) -> Iterator[pa.Table]:
    for start in range(0, len(images), BLOCK_ROWS):
        seen = [_look(data) for data in images.slice(start, BLOCK_ROWS).to_pylist()]
        greys = np.stack([g for g, _, _ in seen])
        hashes = pa.array(hash_greys(greys), mask=~has_texture(greys))
        yield pa.table([hashes, [c for _, c, _ in seen], [w for _, _, w in seen]], schema=LOOKS)


def _look(data: bytes) -> tuple[npt.NDArray[np.uint8], bytes, str | None]:
    """Grey levels, colours, and why there are none: what cannot be decoded is compared by its bytes only."""
    from vlpipe.stages.pixels import decode

    try:
        image = decode(data)
    except RowFault as fault:
        return np.zeros((32, 32), np.uint8), NO_COLOURS, f"not_compared_{fault.why}"
    return grey(image), colour_grid(image).tobytes(), None
