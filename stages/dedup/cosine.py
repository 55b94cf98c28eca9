"""Pairs of unit vectors with a high cosine. FAISS finds candidates in float32, each is scored in float64.

So what counts as a pair depends neither on the blocks a search was cut into nor on the order of the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from vlpipe.pipeline.errors import VlpipeError

Vectors = npt.NDArray[np.float32]  # (N, D), unit norm
Places = npt.NDArray[np.int64]
Pairs = tuple[Places, Places]

BLOCK_ROWS = 512  # queries of one search
SCORE_ROWS = 65_536  # pairs scored in one go
SLACK = 1e-4  # the float32 search is wrong by about 1e-6
DECIMALS = 6  # of a cosine; what lies below depends on the machine
MIN_PAIR_LIMIT, PAIRS_PER_ROW = 10_000_000, 100
SAMPLE_PER_CLUSTER = 256
KMEANS_ROUNDS = 20


def search_all(faiss: Any, vectors: Vectors, threshold: float) -> Iterator[Pairs]:
    """Candidates (a, b), a < b, of all pairs. A block is compared with itself and what came before it."""
    index = faiss.IndexFlatIP(vectors.shape[1])
    for start in range(0, len(vectors), BLOCK_ROWS):
        block = vectors[start : start + BLOCK_ROWS]
        index.add(block)
        yield _pairs(index.range_search(block, threshold - SLACK), start)


def search_clusters(
    faiss: Any, vectors: Vectors, threshold: float, *, nprobe: int, seed: int
) -> Iterator[Pairs]:
    """Candidates (a, b), a < b, where one lies in the `nprobe` clusters nearest to the other; most twice.

    Spherical k-means on rows that are evenly spaced in the keep order. With sqrt(N / 2) clusters, finding the
    cluster costs about as much as comparing within it.
    """
    num_rows, width = vectors.shape
    num_clusters = max(nprobe, round((num_rows / 2) ** 0.5))
    num_sampled = min(num_rows, SAMPLE_PER_CLUSTER * num_clusters)
    sample = vectors[np.linspace(0, num_rows - 1, num_sampled).astype(np.int64)]
    options = {
        "min_points_per_centroid": 1,
        "max_points_per_centroid": SAMPLE_PER_CLUSTER,
    }  # it warns otherwise
    kmeans = faiss.Kmeans(width, num_clusters, niter=KMEANS_ROUNDS, seed=seed, spherical=True, **options)
    kmeans.train(sample)
    index = faiss.IndexIVFFlat(kmeans.index, width, num_clusters, faiss.METRIC_INNER_PRODUCT)
    index.train(sample)  # only marks it as trained: kmeans.index holds the centroids
    index.add(vectors)
    index.nprobe = nprobe
    for start in range(0, num_rows, BLOCK_ROWS):
        block = vectors[start : start + BLOCK_ROWS]
        yield _pairs(index.range_search(block, threshold - SLACK), start)


def _pairs(found: tuple[Any, Any, Any], start: int) -> Pairs:
    limits, _, others = found
    rows = np.repeat(np.arange(start, start + len(limits) - 1), np.diff(limits.astype(np.int64)))
    pair = rows != others
    return np.minimum(rows, others)[pair], np.maximum(rows, others)[pair]


def unique_pairs(found: Iterator[Pairs], num_rows: int) -> Pairs:
    """Each pair once, ordered by (a, b). Raises when there are so many that the threshold cannot be meant."""
    limit = max(MIN_PAIR_LIMIT, PAIRS_PER_ROW * num_rows)
    keys, total = [np.empty(0, np.int64)], 0
    for a, b in found:
        keys.append(a * np.int64(num_rows) + b)
        total += len(a)
        if total > limit:
            raise VlpipeError(
                f"more than {limit:,} pairs of {num_rows:,} rows reach the threshold: the encoder has "
                "collapsed, or the threshold is too low for it, or there are many copies (drop those of "
                "dedup.exact first)"
            )
    pairs = np.unique(np.concatenate(keys))
    return pairs // max(num_rows, 1), pairs % max(num_rows, 1)


def score(vectors: Vectors, a: Places, b: Places) -> npt.NDArray[np.float64]:
    """Cosine per pair, at most 1, and exactly 1 for equal vectors."""
    cosines = np.empty(len(a), np.float64)
    for start in range(0, len(a), SCORE_ROWS):
        part = slice(start, start + SCORE_ROWS)
        x, y = vectors[a[part]].astype(np.float64), vectors[b[part]].astype(np.float64)
        lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
        cosines[part] = np.round((x * y).sum(axis=1) / lengths, DECIMALS)
    return np.minimum(cosines, 1.0)
