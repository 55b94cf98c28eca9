"""The bootstrap against closed forms. Tolerances: the standard deviation of 20,000 resamples has a relative error of 0.5 %;
2 % is four times as much."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from vlpipe.stages.evaluate import bootstrap
from vlpipe.stages.evaluate.bootstrap import Replicate, interval, resampled_means

NUM = 20_000


def replicate(values: np.ndarray, name: str = "r", counts: np.ndarray | None = None) -> Replicate:
    """values: (R, A), one item per row, or sums of `counts` (R,) items."""
    rows = tuple(f"{name}{k:06d}" for k in range(len(values)))
    per_row = np.ones(len(values)) if counts is None else counts
    return Replicate(rows, np.asarray(values, float)[:, :, None], np.asarray(per_row, float)[:, None])


def test_one_seed_is_the_normal_interval_of_a_mean() -> None:
    """Hits of two arms that agree on most rows: 1.96 standard errors of the paired differences, within 3 %."""
    rng = np.random.default_rng(0)
    first = rng.random(500) < 0.4
    second = np.where(rng.random(500) < 0.2, rng.random(500) < 0.6, first)
    means = resampled_means([replicate(np.stack([first, second], axis=1))], NUM, 0)[:, :, 0]
    difference = second.astype(float) - first
    error = difference.std() / 500**0.5
    low, high = interval(means[:, 1] - means[:, 0])
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.03)
    assert (high + low) / 2 == pytest.approx(difference.mean(), abs=0.1 * error)
    apart = (first.std() ** 2 + second.std() ** 2) ** 0.5 / 500**0.5  # were the rows not the same for both
    assert apart > 2 * error
    assert means[:, 0].std() == pytest.approx(first.std() / 500**0.5, rel=0.02)


def test_seeds_with_rows_of_their_own() -> None:
    """4 of 5 seeds are drawn: their mean has the unbiased variance of the seeds' means, by 5. The rows of each drawn seed
    are drawn, too."""
    rng = np.random.default_rng(1)
    values = [rng.normal(mean, 1, (100, 1)) for mean in (0, 0.1, 0.2, 0.4, 0.5)]
    means = resampled_means([replicate(v, str(k)) for k, v in enumerate(values)], NUM, 0)[:, 0, 0]
    over_seeds = np.var([v.mean() for v in values], ddof=1) / 5
    over_rows = np.mean([v.var() / 100 for v in values]) / 4
    assert means.mean() == pytest.approx(np.mean(values), abs=4 * means.std() / NUM**0.5)
    assert means.std() == pytest.approx((over_seeds + over_rows) ** 0.5, rel=0.02)


def test_seeds_with_the_same_rows_share_the_draws() -> None:
    """A row's own difficulty, the same in each seed, does not average out over seeds."""
    rng = np.random.default_rng(2)
    difficulty = rng.normal(0, 1, (100, 1))
    values = [difficulty + rng.normal(0, 0.1, (100, 1)) for _ in range(5)]
    together = resampled_means([replicate(v) for v in values], NUM, 0)[:, 0, 0]
    apart = resampled_means([replicate(v, str(k)) for k, v in enumerate(values)], NUM, 0)[:, 0, 0]
    assert together.std() == pytest.approx(1 / 10 * difficulty.std(), rel=0.03)
    assert apart.std() == pytest.approx(together.std() / 2, rel=0.05)  # 4 drawn seeds, each with its own rows


def test_a_row_is_drawn_with_all_its_items() -> None:
    """Five equal items per row say no more than one."""
    hits = (np.random.default_rng(3).random((500, 1)) < 0.3).astype(float)
    one = resampled_means([replicate(hits)], 3000, 0)
    five = resampled_means([replicate(5 * hits, counts=np.full(500, 5))], 3000, 0)
    assert np.array_equal(one, five)


def test_rows_count_by_their_items() -> None:
    """Two rows, one with 1 item of value 1, one with 3 items of value 0: means 1, 1/4 and 0 in proportions 1 : 2 : 1."""
    found = resampled_means([replicate(np.array([[1], [0]]), counts=np.array([1, 3]))], NUM, 0)[:, 0, 0]
    values, counts = np.unique(found, return_counts=True)
    assert values.tolist() == [0, 0.25, 1]
    assert counts / NUM == pytest.approx([0.25, 0.5, 0.25], abs=0.015)  # four standard errors


def test_a_metric_of_few_rows_is_left_out_where_none_of_them_is_drawn() -> None:
    one = Replicate(("a", "b"), np.array([[[1.0, 2.0]], [[3.0, 0.0]]]), np.array([[1.0, 1.0], [1.0, 0.0]]))
    found = resampled_means([one], 1000, 0)[:, 0]
    assert not np.isnan(found[:, 0]).any()
    assert np.isnan(found[:, 1]).mean() == pytest.approx(0.25, abs=0.06)
    assert interval(found[:, 1]) == (2, 2)


@pytest.mark.parametrize("names", ["aaa", "abc"])
def test_blocks_do_not_change_the_draws(monkeypatch: pytest.MonkeyPatch, names: str) -> None:
    rng = np.random.default_rng(4)
    replicates = [replicate(rng.random((30, 2)), name) for name in names]
    whole = resampled_means(replicates, 200, 7)
    assert not np.array_equal(resampled_means(replicates, 200, 8), whole)
    monkeypatch.setattr(bootstrap, "BLOCK_VALUES", 100)
    assert np.allclose(resampled_means(replicates, 200, 7), whole, rtol=0, atol=1e-12)


def test_memory_has_a_limit() -> None:
    """2 seeds of 20,000 rows and 4 arms: all draws together would be 640 MB."""
    replicates = [replicate(np.zeros((20_000, 4)), str(k)) for k in range(2)]
    tracemalloc.start()
    try:
        resampled_means(replicates, 1000, 0)
        assert tracemalloc.get_traced_memory()[1] < 250e6
    finally:
        tracemalloc.stop()
