"""The search of a GPU, run on the CPU, against the search of the CPU: the same pairs, the same cosines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from vlpipe.pipeline.shard import heavy
from vlpipe.pipeline.testing import dataset, run_gather
from vlpipe.stages.dedup import cosine
from vlpipe.stages.dedup.cosine import (
    SLACK,
    Side,
    SimilarPairs,
    TooMany,
    Workers,
    decided,
    merged,
    near_pairs,
    scored,
    sketch,
    strong_directions,
)
from vlpipe.stages.dedup.faiss import FaissDuplicates
from vlpipe.stages.dedup.on_device.pairs import SEGMENT, DevicePairs

DEVICE = "cpu:0"  # takes the path of a GPU, which "cpu" does not
SMALL, LARGE = (
    800_000,
    1 << 28,
)  # bytes: nothing stays on the device; all does, and a wave is as large as it can be
CPU = Workers(2, "cpu")


def on_device(max_bytes: int) -> Workers:
    return Workers(1, DEVICE, DevicePairs(DEVICE, max_bytes))


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def planted(num: int, width: int, seed: int = 0) -> np.ndarray:
    """Rows of which a fifth are copies of others at cosines around 0.9, and a tenth has sets of 9 equal ones."""
    rng = np.random.default_rng(seed)
    x = unit(rng.normal(size=(num, width)))
    copies, equal, others = np.split(rng.permutation(num), [num // 5, num // 5 + num // 10])
    cosines = rng.uniform(0.85, 0.95, (len(copies), 1))
    away = unit(rng.normal(size=(len(copies), width)))
    x[copies] = cosines * x[others[: len(copies)]] + np.sqrt(1 - cosines**2) * away
    x[equal] = x[equal[np.arange(len(equal)) // 9 * 9]]
    return unit(x)


def pairs(
    at: Workers, x: np.ndarray, threshold: float, left: np.ndarray | None = None, kept: int | None = None
) -> SimilarPairs:
    """All pairs of `x`, or of rows `left` and the others."""
    basis = np.linalg.qr(np.random.default_rng(1).normal(size=(x.shape[1], kept or x.shape[1])))[0].astype(
        np.float32
    )
    sketches = sketch(x, basis)
    everyone = np.arange(len(x)) if left is None else np.setdiff1d(np.arange(len(x)), left)
    own = everyone if left is None else left
    sides = Side(own, sketches[own]), Side(everyone, sketches[everyone])
    found = near_pairs(at, *sides, x, threshold, same=left is None, limit=10**9)
    return merged(found, len(x))


def assert_equal(got: SimilarPairs, want: SimilarPairs) -> None:
    for name in ("a", "b", "cosine"):
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name))


@pytest.mark.parametrize("max_bytes", [SMALL, 8_000_000, LARGE])
@pytest.mark.parametrize("kept", [4, 48])
def test_pairs_are_those_of_the_cpu(max_bytes: int, kept: int) -> None:
    x = planted(700, 48)
    want = pairs(CPU, x, 0.9, kept=kept)
    assert 300 < len(want.a) < 1000
    assert (want.cosine == 1).sum() > 100
    assert_equal(pairs(on_device(max_bytes), x, 0.9, kept=kept), want)


@pytest.mark.parametrize("max_bytes", [SMALL, LARGE])
def test_pairs_of_two_sets_are_those_of_the_cpu(max_bytes: int) -> None:
    x = planted(900, 32)
    left = np.sort(np.random.default_rng(2).permutation(900)[:333])
    want = pairs(CPU, x, 0.85, left)
    assert len(want.a) > 50
    assert_equal(pairs(on_device(max_bytes), x, 0.85, left), want)


@pytest.mark.parametrize("num", [1, 2, SEGMENT - 1, SEGMENT, SEGMENT + 1, 2 * SEGMENT, 1024, 1025])
@pytest.mark.parametrize("max_bytes", [SMALL, LARGE])
def test_pairs_at_the_edges_of_blocks(num: int, max_bytes: int) -> None:
    x = unit(np.random.default_rng(3).normal(size=(num, 64)))
    ends = sorted({0, num - 1, *(p for p in (SEGMENT - 1, SEGMENT, 1023, 1024) if p < num)})
    x[ends] = x[0]
    got = pairs(on_device(max_bytes), x, 0.9)
    assert list(zip(got.a, got.b, strict=True)) == [(a, b) for a in ends for b in ends if a < b]
    assert_equal(got, pairs(CPU, x, 0.9))


@pytest.mark.parametrize("max_bytes", [SMALL, LARGE])
@pytest.mark.parametrize("num_left", [0, 3])
def test_an_empty_side_has_no_pairs(max_bytes: int, num_left: int) -> None:
    x = planted(3, 16)
    found = pairs(on_device(max_bytes), x, 0.1, np.arange(num_left))
    assert len(found.a) == 0
    nothing = Side(np.empty(0, np.int64), np.empty((0, 9), np.float32))
    assert list(near_pairs(on_device(max_bytes), nothing, nothing, x, 0.1, same=True, limit=9)) == []


@pytest.mark.parametrize("max_bytes", [SMALL, LARGE])
def test_ties_at_the_threshold_are_decided_as_on_the_cpu(max_bytes: int) -> None:
    """Cosines that are 0.6 up to the last digits of a float32, on both sides of where rounding to 6 decimals turns."""
    rng = np.random.default_rng(4)
    away = rng.uniform(-3e-6, 3e-6, 400)
    angle = np.arccos(0.6) + away
    x = np.zeros((401, 16))
    x[0, 0] = 1
    x[1:, 0], x[1:, 1] = np.cos(angle), np.sin(angle)
    x = x.astype(np.float32)
    for threshold in (0.6, 0.599999, 0.600001):
        want = pairs(CPU, x, threshold, np.array([0]))
        assert 0 < len(want.a) < 400
        assert_equal(pairs(on_device(max_bytes), x, threshold, np.array([0])), want)


def test_cosines_near_the_middle_of_two_rounded_values_are_computed_again() -> None:
    x = planted(300, 32)
    a, b = np.triu_indices(300, k=1)
    low, exact = x[a].astype(np.float64), x[b].astype(np.float64)
    cosines = (low * exact).sum(1) / np.sqrt((low * low).sum(1) * (exact * exact).sum(1))
    want = scored(x, a, b, 0.2)
    for error in (-1e-11, 0, 1e-11):
        assert_equal(decided(x, a, b, cosines + error, 0.2), want)
    # half a step from where it is: the value given is not trusted, that of the vectors is
    turned = np.floor(cosines * 1e6) / 1e6 + 0.5e-6
    assert_equal(decided(x, b, a, turned, 0.2), want)


def test_more_hits_than_fit_are_listed_in_parts() -> None:
    """A collapsed encoder: all products reach the threshold, and a wave has many times the hits that are kept."""
    x = unit(1 + 1e-3 * np.random.default_rng(5).normal(size=(700, 16)))
    search = DevicePairs(DEVICE, SMALL)
    assert search.limits(16, 9).hits < 30
    sides = np.arange(700), sketch(x, np.eye(16, 8, dtype=np.float32))
    parts = list(search.search(sides, sides, x, 0.9, slack=SLACK, same=True))
    assert max(len(a) for a, _, _ in parts) <= search.limits(16, 9).pairs
    assert sum(len(a) for a, _, _ in parts) == 700 * 699 // 2
    assert_equal(pairs(on_device(SMALL), x, 0.9), pairs(CPU, x, 0.9))


@pytest.mark.parametrize("max_bytes", [2_000_000, 16_000_000])
@pytest.mark.parametrize("same_vector", [False, True])
def test_memory_stays_within_its_bytes(max_bytes: int, same_vector: bool) -> None:
    x = (
        unit(np.random.default_rng(6).normal(size=(3000, 64)) * 1e-3 + 1)
        if same_vector
        else planted(3000, 64)
    )
    at, sketches = DevicePairs(DEVICE, max_bytes), sketch(x, np.eye(64, dtype=np.float32))
    sides = np.arange(3000), sketches
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as seen:
        found = at.search(sides, sides, x, 0.9, slack=SLACK, same=True)
        num = sum(len(next(found)[0]) for _ in range(40)) if same_vector else sum(len(a) for a, _, _ in found)
    assert num > 1000
    results = seen.profiler.kineto_results  # type: ignore[union-attr]
    changes = [(e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]"]
    peak = np.cumsum([size for _, size in sorted(changes, key=lambda one: one[0])]).max()
    assert 0.2 * max_bytes < peak <= max_bytes


@pytest.mark.parametrize("max_bytes", [SMALL, LARGE])
def test_sketches_that_leave_many_candidates_are_not_used(
    max_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlpipe.stages.dedup.on_device.pairs.SAMPLE", 64)
    x, scored_pairs = planted(500, 48), []

    def counted(self: DevicePairs, vectors: np.ndarray, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        scored_pairs.append(len(a))
        return cosines(self, vectors, a, b)

    cosines = DevicePairs._cosines
    monkeypatch.setattr(DevicePairs, "_cosines", counted)
    want = pairs(CPU, x, 0.9, kept=2)
    assert_equal(pairs(on_device(max_bytes), x, 0.9, kept=2), want)
    assert sum(scored_pairs) < 1.2 * len(want.a) + 10
    scored_pairs.clear()
    monkeypatch.setattr("vlpipe.stages.dedup.on_device.pairs.DENSE", 1.0)
    assert_equal(pairs(on_device(max_bytes), x, 0.9, kept=2), want)
    assert sum(scored_pairs) > 10 * len(want.a)


def test_too_little_memory_is_an_error() -> None:
    with pytest.raises(
        ValueError, match=r"1,000 bytes of memory on cpu:0 are too few .* of 16 dimensions; at least"
    ):
        pairs(on_device(1000), planted(30, 16), 0.9)
    needed = 294_912  # as the error says
    with pytest.raises(ValueError, match=f"at least {needed:,} are needed"):
        DevicePairs(DEVICE, needed - 1).limits(16, 9)
    assert min(DevicePairs(DEVICE, needed).limits(16, 9)) >= 1


def test_products_of_less_precision_are_an_error() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(RuntimeError, match="full float32 precision"):
            pairs(on_device(LARGE), planted(30, 16), 0.9)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_too_many_pairs_stop_the_search() -> None:
    x = unit(1 + 1e-3 * np.random.default_rng(5).normal(size=(300, 16)))
    side = Side(np.arange(300), sketch(x, np.eye(16, 8, dtype=np.float32)))
    with pytest.raises(TooMany):
        list(near_pairs(on_device(LARGE), side, side, x, 0.9, same=True, limit=44_849))
    assert len(pairs(on_device(LARGE), x, 0.9).a) == 44_850


def test_sketches_of_a_device_are_upper_bounds_too() -> None:
    x = planted(600, 64)
    assert strong_directions(x, 0.9, 600, DEVICE).shape == strong_directions(x, 0.9, 600).shape
    basis = strong_directions(x, 0.9, 600)[:, :8]
    got = sketch(x, basis, DEVICE)
    np.testing.assert_allclose(got, sketch(x, basis), atol=1e-5)
    assert (got @ got.T - x @ x.T).min() > -1e-5


@pytest.mark.parametrize("exact_below", [50_000, 0])
def test_the_step_writes_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exact_below: int
) -> None:
    x = planted(1200, 32)
    kind = pa.list_(pa.float32(), 32)
    schema = pa.schema(
        [("id", pa.string()), ("width", pa.int32()), ("height", pa.int32()), heavy("embedding", kind)]
    )
    values = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 32)
    rows = pa.table([[f"r{k:04d}" for k in range(1200)], [1] * 1200, [1] * 1200, values], schema=schema)
    data = dataset(tmp_path, rows, shard_rows=500)
    stage = FaissDuplicates(threshold=0.9, exact_below=exact_below)
    run_gather(stage, [data], tmp_path / "cpu")

    @contextmanager
    def gpu() -> Iterator[Workers]:
        yield on_device(8_000_000)

    monkeypatch.setattr("vlpipe.stages.dedup.faiss.workers", gpu)
    monkeypatch.setattr(cosine, "_above", None)  # the search of the CPU would fail
    run_gather(stage, [data], tmp_path / "gpu")
    for name in ("decisions.parquet", "edges.parquet"):
        first, second = (tmp_path / at / "artifacts" / name for at in ("cpu", "gpu"))
        assert first.read_bytes() == second.read_bytes()
