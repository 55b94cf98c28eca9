"""Regions of a row as a stream, and their masking."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.common.region_rows import regions_array
from vlpipe.stages.loading.corruptors.mask_regions import MaskRegions
from vlpipe.stages.loading.makers.base import Sample
from vlpipe.stages.loading.makers.regions import Regions
from vlpipe.stages.loading.rows import Row

FEAT = 8
NO_RNG = np.random.default_rng(0)


def records(seed: int, num: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "feat": rng.normal(size=(num, FEAT)).astype(np.float16),
        "box": rng.uniform(0, 50, (num, 4)).astype(np.float32),
        "prob": rng.random((num, 4)).astype(np.float16),
        "obj": rng.integers(0, 3, num).astype(np.int16),
        "obj_conf": rng.random(num).astype(np.float32),
        "attr": rng.integers(-1, 2, num).astype(np.int16),
        "attr_conf": rng.random(num).astype(np.float32),
    }


def rows_of(*nums: int) -> tuple[list[dict[str, Any]], list[Row]]:
    """Images with these numbers of regions; the column is a slice, as `take` and row groups give them."""
    found = [records(k, num) for k, num in enumerate(nums)]
    column = regions_array([records(9, 3), *found], FEAT, 4)[1:]
    rows = [
        Row(f"row{k}", k, ["a text"], {"regions": value, "width": 100, "height": 50})
        for k, value in enumerate(column)
    ]
    return found, rows


def test_a_batch_of_regions() -> None:
    wanted, rows = rows_of(5, 2, 4)
    maker = Regions(num=4, feat_dim=FEAT)
    stream = maker.collate([maker(row, "", NO_RNG) for row in rows])
    best = np.sort(np.argsort(-wanted[0]["obj_conf"])[:4])
    assert stream.mask is not None
    assert stream.mask.sum(1).tolist() == [4, 2, 4]
    np.testing.assert_array_equal(stream.data[0].numpy(), wanted[0]["feat"][best].astype(np.float32))
    np.testing.assert_array_equal(stream.data[1, :2].numpy(), wanted[1]["feat"].astype(np.float32))
    size = np.array([100, 50, 100, 50], np.float32)
    np.testing.assert_allclose(stream.extra["box"][2].numpy(), wanted[2]["box"] / size)
    for name in ("obj", "attr", "obj_conf", "attr_conf"):
        np.testing.assert_array_equal(stream.extra[name][2].numpy(), wanted[2][name])
        assert not stream.extra[name][1, 2:].any()
    assert "prob" not in stream.extra
    with_probs = Regions(num=4, probs=True)
    found = with_probs.collate([with_probs(row, "", NO_RNG) for row in rows]).extra["prob"]
    np.testing.assert_array_equal(found[0].numpy(), wanted[0]["prob"][best])
    np.testing.assert_array_equal(found[1, :2].numpy(), wanted[1]["prob"])
    assert not found[1, 2:].any()


@pytest.mark.parametrize(
    ("maker", "nums", "message"),
    [
        (Regions(num=3, exact=True), (2,), "row0 has 2, wanted 3 regions"),
        (Regions(), (0,), "row0 has 0, wanted at least one"),
        (Regions(feat_dim=9), (2,), "have 8 values, the model reads 9"),
    ],
)
def test_wrong_regions_are_refused(maker: Regions, nums: tuple[int, ...], message: str) -> None:
    _, (row,) = rows_of(*nums)
    with pytest.raises(VlpipeError, match=message):
        maker(row, "", NO_RNG)


def generator(seed: int) -> Callable[[int], np.random.Generator]:
    return lambda k: np.random.default_rng((seed, k))


def samples_of(num: int, regions: int) -> tuple[list[Sample], Regions]:
    maker = Regions()
    _, rows = rows_of(*[regions] * num)
    return [{"regions": maker(row, "", NO_RNG)} for row in rows], maker


def test_masking_as_in_lxmert() -> None:
    """Of 200 x 36 regions 15 % are masked, of these 80 % zero, 10 % foreign, 10 % unchanged: each within 4 deviations."""
    samples, maker = samples_of(200, 36)
    before = np.stack([sample["regions"]["data"].copy() for sample in samples])
    out = MaskRegions()(samples, generator(0), {"regions": maker})
    stream = maker.collate([sample["regions"] for sample in out])
    data, masked = stream.data.numpy(), stream.target["masked"].numpy()
    np.testing.assert_array_equal(stream.target["feat"].numpy(), before)
    changed = (data != before).any(2)
    assert not changed[~masked].any()
    zero, same = masked & (data == 0).all(2), masked & ~changed
    for count, num, share in (
        (masked.sum(), masked.size, 0.15),
        (zero.sum(), masked.sum(), 0.8),
        (same.sum(), masked.sum(), 0.1),
    ):
        assert abs(count - num * share) < 4 * (num * share * (1 - share)) ** 0.5
    for row, at in zip(*np.nonzero(changed & ~zero), strict=True):
        owners = {int(k) for k in np.nonzero((before == data[row, at]).all(2))[0]}
        assert owners
        assert int(row) not in owners


def test_at_least_one_region_is_masked_and_draws_repeat() -> None:
    made = []
    for _ in range(2):
        samples, maker = samples_of(30, 2)
        out = MaskRegions(rate=0.01, at_least=1, split=(1, 0))(samples, generator(3), {"regions": maker})
        made.append(maker.collate([sample["regions"] for sample in out]))
    assert (made[0].target["masked"].sum(1) >= 1).all()
    assert (made[0].data[made[0].target["masked"]] == 0).all()
    assert (made[0].data == made[1].data).all()


@pytest.mark.parametrize("wrong", [{"rate": 0.0}, {"split": (0.8, 0.3)}, {"at_least": -1}])
def test_impossible_masking(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"mask_regions: {next(iter(wrong))}"):
        MaskRegions(**wrong)


def test_null_regions_are_refused() -> None:
    value = pa.scalar(None, regions_array([records(0, 1)], FEAT, 4).type)
    row = Row("row0", 0, [], {"regions": value, "width": 1, "height": 1})
    with pytest.raises(VlpipeError, match="null regions"):
        Regions()(row, "", NO_RNG)
