"""Blocks and grids in place of MAE's random patches. He et al. 2022, https://arxiv.org/abs/2111.06377, figure 6 and table
1f."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from vlpipe.stages.loading.corruptors.base import Rng
from vlpipe.stages.loading.corruptors.mask_blocks import block, place
from vlpipe.stages.loading.corruptors.mask_patches import _size
from vlpipe.stages.loading.makers.base import EXTRA, TARGET, Maker, Sample

ASPECT = (0.3, 1 / 0.3)  # of a block, as BEiT's


@dataclass(frozen=True, kw_only=True)
class MaskPatterns:
    """Hides patches of each image in a pattern; records what `mask_patches:MaskPatches` does.

    pattern: "block", BEiT's blocks of `min_patches` patches or more, until round(ratio x N) or more are hidden; of the last
    block so many are visible again, drawn at random, that it is exactly so many. "grid", one of four patches is visible, the
    same for all images; `ratio` must be 0.75. patch: side of a patch in pixels.
    """

    patch: int
    pattern: Literal["block", "grid"]
    ratio: float = 0.75
    min_patches: int = 16
    stream: str = "image"

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1 or self.min_patches < 1 or (self.pattern == "grid" and self.ratio != 0.75):
            raise ValueError(
                "mask_patterns: ratio must be between 0 and 1, for a grid 0.75, and min_patches at least 1, got "
                f"{self.ratio} and {self.min_patches}"
            )

    def __call__(self, samples: list[Sample], rng: Rng, makers: Mapping[str, Maker]) -> list[Sample]:
        for k, sample in enumerate(samples):
            item = sample[self.stream]
            sides = item["data"].shape[-2:] if item["data"].ndim > 1 else _size(makers[self.stream])
            height, width = (side // self.patch for side in sides)
            if self.pattern == "grid":
                masked = np.ones((height, width), np.bool_)
                masked[::2, ::2] = False
            else:
                masked = self._blocks(height, width, rng(k))
            flat = masked.reshape(-1)
            sample[self.stream] = {**item, f"{EXTRA}keep": np.flatnonzero(~flat), f"{TARGET}masked": flat}
        return samples

    def _blocks(self, height: int, width: int, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
        masked = np.zeros((height, width), np.bool_)
        wanted = round(self.ratio * masked.size)
        while (left := wanted - int(masked.sum())) > 0:
            before = masked.copy()
            area = rng.uniform(self.min_patches, max(self.min_patches, left))
            tall, wide = block(area, rng.uniform(*ASPECT))
            masked[place(masked, min(tall, height), min(wide, width), rng)] = True
            if (over := int(masked.sum()) - wanted) > 0:
                new = np.flatnonzero((masked & ~before).reshape(-1))
                masked.reshape(-1)[rng.choice(new, over, replace=False)] = False
        return masked
