from __future__ import annotations

from collections.abc import Iterator

import faiss
import numpy as np
import pytest

from vlpipe.stages.dedup.cosine import Workers
from vlpipe.stages.dedup.search_clusters import MAX_SHARE, Members, assign, find_centroids


@pytest.fixture(autouse=True)
def one_faiss_thread() -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


def points(num: int, width: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(num, width)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_rows_are_guests_within_the_margin_of_their_nearest_cluster() -> None:
    x, centroids = points(700, 8), points(12, 8, seed=1)
    got = assign(Workers(2, "cpu"), x, centroids, margin=0.2, probes=5)
    cosines = x @ centroids.T
    rank = np.argsort(np.argsort(-cosines, axis=1), axis=1)
    want = (cosines >= cosines.max(axis=1, keepdims=True) - 0.2) & (rank < 5)
    assert 700 < want.sum() < 5 * 700
    for cluster in range(12):
        rows, own = got.of(cluster)
        assert rows.tolist() == np.flatnonzero(want[:, cluster]).tolist()
        assert rows[own].tolist() == np.flatnonzero(rank[:, cluster] == 0).tolist()


def test_members_survive_a_file() -> None:
    got = assign(Workers(1, "cpu"), points(50, 4), points(6, 4, seed=1), margin=0.1, probes=3)
    again = Members.unpacked(got.packed())
    for name in ("rows", "own", "bounds"):
        np.testing.assert_array_equal(getattr(again, name), getattr(got, name))


def test_a_cluster_that_is_too_large_is_split() -> None:
    heap = points(1, 16) + 0.02 * points(3000, 16, seed=2)
    x = np.concatenate([heap, points(300, 16, seed=3)]).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    centroids = find_centroids(faiss, x, 33, seed=0)
    sizes = np.bincount((x @ centroids.T).argmax(axis=1), minlength=len(centroids))
    assert sizes.max() <= 2 * MAX_SHARE * len(x) / 33
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-5)


def test_equal_points_cannot_be_split_and_that_ends() -> None:
    x = np.repeat(points(2, 4), 500, axis=0)
    assert 1 <= len(find_centroids(faiss, x, 8, seed=0)) <= 16
