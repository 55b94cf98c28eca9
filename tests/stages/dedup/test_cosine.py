from __future__ import annotations

import numpy as np
import pytest

from vlpipe.stages.dedup.cosine import SimilarPairs, merged, score, sketch, strong_directions

RNG = np.random.default_rng(0)


def unit(num: int, width: int, spectrum: float) -> np.ndarray:
    x = RNG.normal(size=(num, width)) * np.arange(1, width + 1) ** -spectrum
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("kept", [1, 8, 64])
def test_products_of_sketches_are_never_below_the_cosine(kept: int) -> None:
    x = unit(200, 64, 1.0)
    basis = np.linalg.qr(RNG.normal(size=(64, kept)))[0].astype(np.float32)
    sketches = sketch(x, basis)
    assert sketches.shape == (200, kept + 1)
    over = sketches @ sketches.T - x @ x.T
    assert over.min() > -1e-5
    if kept == 64:
        assert np.abs(over).max() < 1e-5


def test_a_sketch_is_short_where_few_directions_matter() -> None:
    assert strong_directions(unit(2000, 512, 0.5), 0.95, 2000).shape == (512, 64)
    assert strong_directions(unit(2000, 64, 0.0), 0.5, 10**7).shape == (64, 64)


def test_cosines_do_not_depend_on_the_block_and_are_1_for_equal_vectors() -> None:
    x = unit(9000, 16, 0.5)
    a = np.arange(9000)
    b = np.roll(a, 1)
    assert (score(x, a, a) == 1.0).all()
    whole = score(x, a, b)
    assert whole[::30].tolist() == [score(x, a[k : k + 1], b[k : k + 1])[0] for k in range(0, 9000, 30)]
    np.testing.assert_allclose(whole, (x[a].astype(float) * x[b]).sum(1), atol=2e-6)


def test_a_pair_found_twice_counts_once() -> None:
    one = SimilarPairs(np.array([3, 0]), np.array([4, 9]), np.array([0.9, 0.8]))
    got = merged([one, one, SimilarPairs(np.array([0]), np.array([2]), np.array([0.7]))], 10)
    assert (got.a.tolist(), got.b.tolist(), got.cosine.tolist()) == ([0, 0, 3], [2, 9, 4], [0.7, 0.8, 0.9])
