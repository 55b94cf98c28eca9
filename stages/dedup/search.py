"""The search for similar pairs. Intermediate results are stored in the step's work folder; a killed run loses at most one.

They are: the vectors, their sketches, the centroids, the cluster members, and the pairs of each range of clusters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.storage.store import Store
from vlpipe.stages.dedup.cosine import (
    SKETCH_SAMPLE,
    Rows,
    Side,
    SimilarPairs,
    TooMany,
    Vectors,
    Workers,
    merged,
    near_pairs,
    sketch,
    strong_directions,
)
from vlpipe.stages.dedup.edges import Edges
from vlpipe.stages.dedup.search_clusters import POINTS_PER_CLUSTER, Members, assign, find_centroids
from vlpipe.stages.dedup.vectors import sample_of

MIN_PAIR_LIMIT, PAIRS_PER_ROW = 10_000_000, 100
SKETCH_ROWS = 8192
NUM_PARTS = 64  # files of pairs; each write waits for the disk
PAIR = np.dtype([("a", "<i8"), ("b", "<i8"), ("cosine", "<f8")])


@dataclass(frozen=True, slots=True)
class Plan:
    """Parameters of the search, as in `FaissDuplicates`. num_new: row numbers from here on belong to the earlier set."""

    threshold: float
    num_new: int
    exact_below: int
    clusters: int | None
    margin: float
    probes: int
    seed: int


def search(
    faiss: Any,
    at: Workers,
    store: Store,
    vectors: Vectors,
    rows: Rows,
    marks: npt.NDArray[np.uint64],
    plan: Plan,
) -> Edges:
    """Returns the pairs among `rows` (ascending row numbers) at or above the threshold, except pairs of two earlier rows.

    marks: an 8-byte hash of each row's id; it determines the samples. Raises VlpipeError if there are too many pairs.
    """
    parts, limit = [], max(MIN_PAIR_LIMIT, PAIRS_PER_ROW * len(rows))
    if len(rows):
        sketches = _sketches(at, store, vectors, rows, marks, plan)
        members = _members(faiss, at, store, sketches, rows, marks, plan)
        num_clusters = len(members.bounds) - 1
        for k, clusters in enumerate(np.array_split(np.arange(num_clusters), min(num_clusters, NUM_PARTS))):
            sides = (s for c in clusters for s in _sides(rows, members, int(c), sketches, plan.num_new))
            try:
                parts.append(_pairs(at, store, f"pairs-{k:06d}.npy", vectors, sides, plan, limit))
            except TooMany:
                raise _too_many(len(rows)) from None
            limit -= len(parts[-1].a)
    found = merged(parts, len(vectors))
    return Edges(found.a, found.b, found.cosine, np.zeros(len(found.a), np.int8))


def _too_many(num_rows: int) -> VlpipeError:
    limit = max(MIN_PAIR_LIMIT, PAIRS_PER_ROW * num_rows)
    return VlpipeError(
        f"more than {limit:,} pairs of {num_rows:,} distinct rows reach the threshold: the encoder has collapsed, or "
        "the threshold is too low for it, or there are many near copies (first drop those that dedup.exact finds)"
    )


def _kept(store: Store, name: str, make: Callable[[], npt.NDArray[Any]]) -> Any:
    """Returns the array stored as `name`, computing it if it is missing."""
    if not store.exists(name):
        made = make()
        with store.writing(name, sync_folder=False) as part, open(part, "wb") as file:
            np.save(file, made)
    return np.load(store.path(name))


def _sketches(
    at: Workers, store: Store, vectors: Vectors, rows: Rows, marks: npt.NDArray[np.uint64], plan: Plan
) -> Vectors:
    """Returns sketches (len(rows), R + 1), memory-mapped; R is the full width if short sketches are not selective enough.

    If there are clusters, which depend on them, they are computed on the CPU: the same ones for all devices.
    """
    if not store.exists("sketches.npy"):
        device = at.device if len(rows) <= plan.exact_below else "cpu"
        sample = vectors[sample_of(marks, rows, SKETCH_SAMPLE)]
        basis = strong_directions(sample, plan.threshold, len(rows), device)
        shape = (len(rows), basis.shape[1] + 1)
        with store.writing("sketches.npy", sync_folder=False) as part:
            out = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=shape)
            for start in range(0, len(rows), SKETCH_ROWS):
                out[start : start + SKETCH_ROWS] = sketch(
                    vectors[rows[start : start + SKETCH_ROWS]], basis, device
                )
            out.flush()
    found: Vectors = np.load(store.path("sketches.npy"), mmap_mode="r")
    return found


def _members(
    faiss: Any,
    at: Workers,
    store: Store,
    sketches: Vectors,
    rows: Rows,
    marks: npt.NDArray[np.uint64],
    plan: Plan,
) -> Members:
    """Returns positions in `rows` by cluster; a single cluster for up to `exact_below` rows."""
    num_clusters = min(plan.clusters or max(2, round(len(rows) ** 0.5)), len(rows))
    if len(rows) <= plan.exact_below:
        return Members(np.arange(len(rows)), np.ones(len(rows), np.bool_), np.array([0, len(rows)]))
    points = sketches[:, :-1]

    def centroids() -> Vectors:
        sample = np.searchsorted(rows, sample_of(marks, rows, POINTS_PER_CLUSTER * num_clusters))
        return find_centroids(faiss, np.ascontiguousarray(points[sample]), num_clusters, plan.seed)

    def assigned() -> npt.NDArray[Any]:
        found = assign(
            at, points, _kept(store, "centroids.npy", centroids), margin=plan.margin, probes=plan.probes
        )
        return found.packed()

    return Members.unpacked(_kept(store, "members.npy", assigned))


def _sides(
    rows: Rows, members: Members, cluster: int, sketches: Vectors, num_new: int
) -> list[tuple[Side, Side, bool]]:
    """Returns a cluster's two comparisons: its own new rows with all members, its new guests with its own earlier rows.

    Each is (left, right, same) of `near_pairs`. A row is an own row of its nearest cluster, and a guest of others. Two
    guests are not compared here, only in a cluster where one of them is an own row. Two earlier rows are never compared.
    """
    places, own = members.of(cluster)
    new = rows[places] < num_new
    home, guests, old = places[own & new], places[~own & new], places[own & ~new]
    everyone = np.concatenate([home, guests, old, places[~own & ~new]])
    home_side, all_side, guest_side, old_side = (
        Side(rows[p], np.asarray(sketches[p])) for p in (home, everyone, guests, old)
    )
    return [(home_side, all_side, True), (guest_side, old_side, False)]


def _pairs(
    at: Workers,
    store: Store,
    name: str,
    vectors: Vectors,
    sides: Iterable[tuple[Side, Side, bool]],
    plan: Plan,
    limit: int,
) -> SimilarPairs:
    def make() -> npt.NDArray[Any]:
        parts, total = [], 0
        for left, right, same in sides:
            for found in near_pairs(at, left, right, vectors, plan.threshold, same=same, limit=limit):
                parts.append(found)
                total += len(found.a)
                if total > limit:
                    raise TooMany
        pairs = merged(parts, len(vectors))
        packed = np.empty(len(pairs.a), PAIR)
        packed["a"], packed["b"], packed["cosine"] = pairs.a, pairs.b, pairs.cosine
        return packed

    found = _kept(store, name, make)
    return SimilarPairs(found["a"], found["b"], found["cosine"])
