"""MAE's blocks and grids: exact numbers, what is recorded, and how patches hang together."""

from __future__ import annotations

import numpy as np
import pytest

from vlpipe.stages.loading.corruptors.mask_patches import MaskPatches
from vlpipe.stages.loading.corruptors.mask_patterns import MaskPatterns
from vlpipe.stages.loading.makers.base import EXTRA, TARGET


def masks(corruptor: MaskPatterns | MaskPatches, num: int = 40) -> np.ndarray:
    samples = [{"image": {"data": np.zeros((3, 64, 64), np.uint8)}} for _ in range(num)]
    found = corruptor(samples, lambda k: np.random.default_rng(k), {})
    for sample in found:
        masked, keep = sample["image"][f"{TARGET}masked"], sample["image"][f"{EXTRA}keep"]
        assert np.array_equal(np.flatnonzero(~masked), keep)
    return np.stack([sample["image"][f"{TARGET}masked"] for sample in found]).reshape(num, 16, 16)


def alike(found: np.ndarray) -> float:
    """The share of horizontal neighbours that are both hidden or both visible."""
    return float((found[:, :, 1:] == found[:, :, :-1]).mean())


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.75])
def test_blocks_hide_an_exact_share_that_hangs_together(ratio: float) -> None:
    found = masks(MaskPatterns(patch=4, pattern="block", ratio=ratio))
    assert set(found.sum((1, 2)).tolist()) == {round(ratio * 256)}
    assert alike(found) > alike(masks(MaskPatches(patch=4, ratio=ratio))) + 0.1
    assert len({one.tobytes() for one in found}) == len(found)


def test_a_grid_shows_one_of_four() -> None:
    found = masks(MaskPatterns(patch=4, pattern="grid"))
    assert (found.reshape(40, 8, 2, 8, 2).sum((2, 4)) == 3).all()
    assert len({one.tobytes() for one in found}) == 1
    with pytest.raises(ValueError, match=r"for a grid 0\.75"):
        MaskPatterns(patch=4, pattern="grid", ratio=0.5)
