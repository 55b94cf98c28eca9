"""The nearest candidates are those of a complete sort."""

from __future__ import annotations

import numpy as np

from vlpipe.stages.evaluate.nearest import best


def test_the_best_are_those_of_a_complete_sort() -> None:
    """With many ties, and with NaN, which comes last."""
    rng = np.random.default_rng(0)
    for trial in range(300):
        scores = rng.integers(0, 6, (3, rng.integers(1, 30))).astype(np.float32)
        scores[rng.random(scores.shape) < 0.5 * (trial % 3 == 0)] = np.nan
        k = int(rng.integers(1, 33))
        sorted_ = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        np.testing.assert_array_equal(best(scores, k).order, sorted_)
