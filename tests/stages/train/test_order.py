from __future__ import annotations

import dataclasses
from collections import Counter
from itertools import combinations, islice, pairwise

import numpy as np
import pytest

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.loading.order import Order, Part, Sample, Share, balanced, by_length, cuts

COUNTS = [5, 1, 0, 9, 3, 7, 2]  # samples per row group


def order(weights: dict[str, float] | None = None, window: int = 8, seed: int = 0) -> Order:
    weights = weights or {"a": 1.0, "b": 1.0}
    return Order([Share.of(COUNTS, weights["a"]), Share.of([4, 4], weights["b"])], seed=seed, window=window)


def epoch(of: Order, number: int) -> list[tuple[int, int]]:
    return [(s.unit, s.index) for w in of.windows(number) for s in of.samples(w)]


EVERYTHING = {(unit, i) for unit, n in enumerate([*COUNTS, 4, 4]) for i in range(n)}


@pytest.mark.parametrize("window", [1, 8, 1000])
def test_every_epoch_is_another_permutation_of_all_samples(window: int) -> None:
    seen = [epoch(order(window=window), number) for number in range(3)]
    for samples in seen:
        assert len(samples) == len(EVERYTHING) == 35
        assert set(samples) == EVERYTHING
    assert seen[0] != seen[1] != seen[2]
    assert epoch(order(window=window), 1) == seen[1]
    assert epoch(order(window=window, seed=1), 1) != seen[1]


def test_a_window_is_whole_row_groups_and_little_more_than_asked_for() -> None:
    of = order(window=8)
    for window in of.windows(0)[:-1]:
        assert 8 <= window.stop - window.start < 8 + max(COUNTS)
        assert {s.unit for s in of.samples(window)} == set(window.units.tolist())


def test_a_window_ends_with_the_row_group_that_reaches_its_rows_or_bytes() -> None:
    """Units of 10 rows with 50 samples; the window holds 40 rows, or 250 bytes."""
    sizes = [(10, 10)] * 12 + [(10, 100)] * 12
    of = Order([Share.of([50] * 24, 1.0)], seed=0, window=40, window_bytes=250, sizes=sizes)
    for number in range(3):
        windows = of.windows(number)
        assert Counter(u for w in windows for u in w.units.tolist()) == Counter(range(24))
        assert [w.stop for w in windows[:-1]] == [w.start for w in windows[1:]]
        for window in windows[:-1]:
            rows, num_bytes = (sum(sizes[u][i] for u in window.units.tolist()) for i in (0, 1))
            last = sizes[int(window.units[-1])]
            assert rows >= 40 or num_bytes >= 250
            assert rows - last[0] < 40
            assert num_bytes - last[1] < 250
    assert {len(w.units) for number in range(9) for w in of.windows(number)[:-1]} == {3, 4}


def test_one_window_is_a_full_shuffle() -> None:
    """Positions of a sample over many epochs are spread over the whole epoch: mean 17 of 0 .. 34."""
    of = order(window=1000)
    places = [epoch(of, number).index((3, 0)) for number in range(200)]
    assert abs(np.mean(places) - 17) < 2.5  # 3.5 standard errors
    assert min(places) < 3
    assert max(places) > 31


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_ranks_share_each_epoch_without_overlap(world_size: int) -> None:
    of = order()
    sizes = [(r + 1) * 35 // world_size - r * 35 // world_size for r in range(world_size)]
    parts = [rank_samples(of, rank, world_size, size) for rank, size in enumerate(sizes)]
    assert Counter(s for part in parts for s in part) == Counter(EVERYTHING)
    assert max(sizes) - min(sizes) <= 1


def rank_samples(of: Order, rank: int, world_size: int, num: int, skip: int = 0) -> list[tuple[int, int]]:
    samples = (s for window in of.of_rank(rank, world_size, skip) for s in window)
    return [(s.unit, s.index) for s in islice(samples, num)]


@pytest.mark.parametrize("skip", [0, 1, 17, 34, 35, 36, 100])
def test_a_position_is_all_the_state_there_is(skip: int) -> None:
    assert rank_samples(order(), 0, 1, 150)[skip:] == rank_samples(order(), 0, 1, 150 - skip, skip)
    assert rank_samples(order(), 1, 2, 150)[skip:] == rank_samples(order(), 1, 2, 150 - skip, skip)


def test_mix_weights_are_exact_in_every_epoch() -> None:
    of = order({"a": 0.5, "b": 2.25})  # of 27 samples 14 (round half to even), of 8 samples 18
    for number in range(5):
        seen = Counter(epoch(of, number))
        of_a = {s: n for s, n in seen.items() if s[0] < len(COUNTS)}
        of_b = {s: n for s, n in seen.items() if s[0] >= len(COUNTS)}
        assert sum(of_a.values()) == 14
        assert set(of_a.values()) == {1}
        assert Counter(of_b.values()) == {2: 6, 3: 2}
    assert of.samples_per_epoch == 32


def test_a_fraction_gives_every_sample_the_same_chance() -> None:
    """Also where each row group has a single sample: a fixed rounding would never show some of them."""
    of = Order([Share.of([1] * 10, 0.3)], seed=0, window=100)
    seen = Counter(unit for number in range(1000) for unit, _ in epoch(of, number))
    assert sum(seen.values()) == 3000
    assert max(abs(seen[unit] - 300) for unit in range(10)) < 60  # 4 standard deviations


def test_weight_0_leaves_an_input_out() -> None:
    assert {unit for unit, _ in epoch(order({"a": 1.0, "b": 0.0}), 0)} <= set(range(len(COUNTS)))


def test_nothing_to_train_on_says_so() -> None:
    with pytest.raises(VlpipeError, match="no samples; every text was dropped"):
        Order([Share.of([0, 0], 1.0)], seed=0, window=8)
    with pytest.raises(VlpipeError, match=r"2 sample\(s\) are too few for 3 workers"):
        next(Order([Share.of([2], 1.0)], seed=0, window=8).of_rank(0, 3))


@pytest.mark.parametrize("position", [0, 5, 37])
@pytest.mark.parametrize("num", [1, 6, 64, 203])
@pytest.mark.parametrize("balance", [False, True])
def test_batches_of_similar_length(position: int, num: int, balance: bool) -> None:
    """Batches begin at multiples of 8 of the rank's samples, also where a window does not."""
    part = Part([Sample(0, k, 0, k) for k in range(num)], position, 0)
    lengths = np.random.default_rng(num).integers(3, 40, num).tolist()
    found = by_length(part, lengths, 8, 1, balance)
    assert sorted(s.index for piece in found for s in piece) == list(range(num))
    assert found == by_length(dataclasses.replace(part, skip=3), lengths, 8, 1, balance)
    assert (len(found[0]), len(found[-1])) == (cuts(part, 8)[0], cuts(part, 8)[-1])
    whole = [[lengths[s.index] for s in piece] for piece in found[1:-1]]
    assert len(whole) == len(cuts(part, 8)) - 2
    spans = sorted((min(b), max(b)) for b in whole)
    assert all(high <= low for (_, high), (low, _) in pairwise(spans))  # no two batches overlap
    if not balance:
        assert {len(b) for b in whole} <= {8}
    if num == 203:
        assert [min(b) for b in whole] != sorted(min(b) for b in whole)
        assert found != by_length(part, lengths, 8, 2, balance)
        padded = [len(b) * max(b) for b in whole]
        assert (max(padded) < 1.5 * np.mean(padded)) == balance


def test_balanced_groups_are_the_best_of_all() -> None:
    """Against all ways of cutting nine lengths into three or four."""
    for seed in range(30):
        lengths = np.sort(np.random.default_rng(seed).integers(1, 20, 9))
        for num in (3, 4):
            every = [[0, *ends, 9] for ends in combinations(range(1, 9), num - 1)]
            best = min(max((b - a) * lengths[b - 1] for a, b in pairwise(cut)) for cut in every)
            sizes = balanced(lengths, num)
            ends = np.cumsum(sizes)
            assert (len(sizes), sum(sizes), min(sizes) > 0) == (num, 9, True)
            assert max(n * lengths[end - 1] for n, end in zip(sizes, ends, strict=True)) == best
