"""Deduplicates rows with equal bytes (sha256) and, optionally, nearly equal images (pHash).

Hashes find copies, resized and re-encoded images; crops, flips and heavy edits need embeddings (`dedup.faiss`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import need, read_batches, write_shard
from vlpipe.pipeline.stage import Dataset, GatherStage, Job
from vlpipe.pipeline.storage.store import Store
from vlpipe.stages.common.phash import MAX_DISTANCE, TooMany, colour_gap, pairs_within
from vlpipe.stages.dedup.decisions import (
    DECISIONS,
    DECISIONS_REFERENCES,
    decide_new,
    say_counts,
    write_decisions,
)
from vlpipe.stages.dedup.edges import EDGES_REFERENCES, KINDS, Edges, Places, with_copies, write_edges
from vlpipe.stages.dedup.keep_order import read_rows
from vlpipe.stages.dedup.looks import LOOK, Looks, from_arrow, joined, look_at, to_arrow
from vlpipe.stages.dedup.row_ids import PACKED, digest_words, packed
from vlpipe.stages.dedup.search import MIN_PAIR_LIMIT, PAIRS_PER_ROW
from vlpipe.stages.dedup.vectors import earlier_files, first_equal, number_rows

LOOKS = pa.schema([("looks", LOOK)])


@dataclass(frozen=True, kw_only=True)
class ExactDuplicates(GatherStage):
    """Emits one decision per row (columns: DECISIONS), with the defaults of `dedup.redecide`.

    Artifacts: `decisions.parquet`, for `dedup.apply`; `edges.parquet`, for other decisions by `dedup.redecide`.
    phash: also compare images. Uses the column `looks` (`dedup.looks`); without it, all images are decoded in one process.
    max_distance: max number of differing bits between two 64-bit hashes. At 10, all re-encoded copies of small images were
    found and 96 % of the shifted ones; at 4, half of the shifted ones. 200,000 rows take 8 s on one core at 10, 1 s at 7
    and below.
    max_colour_gap: max difference (0 to 255) of the mean colour in each cell of a 4 x 4 grid, with brightness and contrast
    evened out; 255 disables this check. Recall per edit at other values: benchmarks/dedup_colours.md. With the check, 5,000
    photos had no false positive at 14 bits; without it, they had 92 false pairs at 12.
    against: an earlier kept set (a Parquet file or folder, as written by `vlpipe export`) with `sha256` and, for phash,
    `looks`. Rows are compared with it and with each other; rows of the earlier set are never dropped.
    """

    CONSERVES: ClassVar[bool] = True

    phash: bool = False
    max_distance: Annotated[int, Field(ge=0, le=MAX_DISTANCE)] = 10
    max_colour_gap: Annotated[int, Field(ge=0, le=255)] = 16
    against: File | None = None

    NAME: ClassVar[str] = "dedup.exact:ExactDuplicates"
    VERSION: ClassVar[int] = 4
    ARTIFACT_REFERENCES: ClassVar[Mapping[str, tuple[str, ...]]] = DECISIONS_REFERENCES | EDGES_REFERENCES

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "dedup.exact", id=pa.string(), sha256=pa.string())
        if self.phash:
            need(inp, "dedup.exact", **({"looks": LOOK} if "looks" in inp.names else {"image": pa.binary()}))
        return DECISIONS

    def run(self, job: Job) -> None:
        rows = read_rows(job.inputs, None, "dedup.exact")
        files = earlier_files(self.against, self._check_earlier)
        ids, numbers = number_rows(rows.ids, files)
        num_new, by_number = len(rows.ids), np.argsort(numbers)
        leader = same_bytes(_sha256(job, files).take(pa.array(by_number)), num_new)
        looks = joined([read_looks(job), _stored_looks(files)]).take(by_number) if self.phash else None
        edges = self._near(leader, looks, num_new)
        edges = with_copies(edges, leader, num_new, "same_bytes")
        write_edges(job.artifacts, ids, num_new, edges, 1 - self.max_distance / 64 if self.phash else 1.0)
        decisions = decide_new(job.inputs, ids, numbers, rows.order, edges)
        decisions = _with_faults(decisions, looks and looks.take(numbers[:num_new]))
        write_decisions(job.artifacts, decisions)
        job.emit(decisions)
        job.say(say_counts(decisions))

    def _check_earlier(self, schema: pa.Schema, who: str) -> None:
        need(schema, who, sha256=pa.string(), **({"looks": LOOK} if self.phash else {}))

    def _near(self, leader: Places, looks: Looks | None, num_new: int) -> Edges:
        """Returns pairs of near (pHash) and equal looks among the representatives of rows with equal bytes."""
        empty = np.empty(0, np.int64)
        if looks is None:
            return Edges(empty, empty, np.empty(0), np.empty(0, np.int8))
        places = np.flatnonzero(looks.seen & (leader == np.arange(len(leader))))
        same = np.arange(len(leader))
        same[places] = places[same_looks(looks.take(places), int((places < num_new).sum()))]
        places = places[same[places] == places]
        try:
            a, b, distance = pairs_within(looks.hashes[places], self.max_distance, _limit(len(leader)))
        except TooMany:
            raise self._too_many(len(leader)) from None
        a, b = places[a], places[b]
        near = (a < num_new) & (colour_gap(looks.colours, looks.colours, a, b) <= self.max_colour_gap)
        kind = np.full(near.sum(), KINDS.index("near"), np.int8)
        found = Edges(a[near], b[near], 1 - distance[near] / 64, kind)
        return with_copies(found, same, num_new, "same_looks")

    def _too_many(self, num_rows: int) -> VlpipeError:
        return VlpipeError(
            f"more than {_limit(num_rows):,} pairs of images differ in at most {self.max_distance} bits: many versions "
            "of one image (a placeholder, a chart), or images too plain for a hash; lower `max_distance`"
        )


def _limit(num_rows: int) -> int:
    return max(MIN_PAIR_LIMIT, PAIRS_PER_ROW * num_rows)


def same_looks(looks: Looks, num_new: int) -> Places:
    """Returns, per row, the first row with the same hash and colours (see `first_equal`).

    An image that occurs a thousand times then needs a thousand edges, not half a million.
    """
    words = np.concatenate([looks.hashes[:, None], looks.colours.view(np.uint64)], axis=1)  # (N, 7)
    return first_equal(words, num_new)


def same_bytes(sha256: pa.Array | pa.ChunkedArray, num_new: int) -> Places:
    """Returns, per row, the first row with the same sha256; itself if it has no sha256."""
    sha256 = sha256 if sha256.type == PACKED else packed([sha256])
    leader = np.arange(len(sha256))
    known = np.flatnonzero(np.asarray(sha256.is_valid()))
    words = digest_words(sha256)
    leader[known] = known[first_equal(words[known], int((known < num_new).sum()))]
    return leader


def _sha256(job: Job, files: Sequence[str]) -> pa.Array:
    rows = (batch["sha256"] for data in job.inputs for batch in data.batches(["sha256"]))
    return packed(chain(rows, (pq.read_table(f, columns=["sha256"])["sha256"] for f in files)))


def _with_faults(decisions: pa.Table, looks: Looks | None) -> pa.Table:
    """Returns the decisions with `why` set (`not_compared_CODE`) for kept rows whose image could not be decoded."""
    if looks is None:
        return decisions
    faults = pa.array([code and f"not_compared_{code}" for code in looks.why], pa.string())
    why = pc.coalesce(decisions["why"], faults)
    return decisions.set_column(decisions.schema.get_field_index("why"), "why", why)


def read_looks(job: Job) -> Looks:
    """Returns the looks of all rows in input order, from the column `looks` or by decoding.

    Decoded looks are stored per shard in `job.work`, so a killed run loses the work on at most one shard.
    """
    store, found = Store(job.work), []
    for data in job.inputs:
        if "looks" in data.schema.names:
            found += [from_arrow(rows["looks"]) for rows in data.batches(["looks"])]
        else:
            parts = (store.path(_shard_looks(store, data, k)) for k in range(len(data.shards)))
            found += [
                from_arrow(pq.read_table(part, page_checksum_verification=True)["looks"]) for part in parts
            ]
    return joined(found)


def _stored_looks(files: Sequence[str]) -> Looks:
    return joined([from_arrow(pq.read_table(file, columns=["looks"])["looks"]) for file in files])


def _shard_looks(store: Store, data: Dataset, k: int) -> str:
    part = f"looks-{data.shards[k].digest}.parquet"  # the digest covers the ids and the sha256 of the images
    if not os.path.exists(store.path(part)):
        images = (t["image"].to_pylist() for t in read_batches(data.store, data.shards[k], [], ["image"]))
        tables = (pa.table([to_arrow(look_at(each))], schema=LOOKS) for each in images)
        write_shard(store, part, tables, LOOKS)
    return part
