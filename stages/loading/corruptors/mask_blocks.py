"""BEiT's blockwise masking. Bao et al. 2021, https://arxiv.org/abs/2106.08254, algorithm 1."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from vlpipe.stages.loading.corruptors.base import Rng
from vlpipe.stages.loading.makers.base import EXTRA, TARGET, Maker, Sample

Mask = npt.NDArray[np.bool_]
TRIES = 10  # of the released code, for a block that fits


@dataclass(frozen=True, kw_only=True)
class MaskBlocks:
    """Hides blocks of patches of each image: extra["masked"] and target["masked"] (B, N) bool.

    patch: side of a patch in pixels. A block has `min_patches` patches or more and an aspect ratio within `aspect`; one that
    is longer than the image is cut off. law: "paper": blocks of at most what is left to `ratio`, until more than that is
    hidden. "released": the aspect ratio is drawn on a logarithmic scale, a block must be shorter than the image and may not
    hide more than is left; it ends with `num` patches (of 196: 75), or fewer if none of 10 blocks fits.
    """

    patch: int
    ratio: float = 0.4
    min_patches: Annotated[int, Field(ge=1)] = 16
    aspect: tuple[float, float] = (0.3, 1 / 0.3)
    law: Literal["paper", "released"] = "paper"
    num: int | None = None
    stream: str = "image"

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1 or not 0 < self.aspect[0] <= self.aspect[1]:
            raise ValueError(
                f"mask_blocks: ratio must be between 0 and 1 and aspect ascend above 0, got {self.ratio}, {self.aspect}"
            )
        if (self.num is None) != (self.law == "paper"):
            raise ValueError(
                f"mask_blocks: law released has a `num`, paper has none, got {self.law}, {self.num}"
            )

    def __call__(self, samples: list[Sample], rng: Rng, makers: Mapping[str, Maker]) -> list[Sample]:
        for k, sample in enumerate(samples):
            item: dict[str, Any] = sample[self.stream]
            height, width = (side // self.patch for side in item["data"].shape[-2:])
            mask = np.zeros((height, width), np.bool_)
            (self._as_published if self.law == "paper" else self._as_released)(mask, rng(k))
            flat = mask.reshape(-1)
            sample[self.stream] = {**item, f"{EXTRA}masked": flat, f"{TARGET}masked": flat}
        return samples

    def _as_published(self, mask: Mask, rng: np.random.Generator) -> None:
        most = self.ratio * mask.size
        while (hidden := int(mask.sum())) <= most:
            area = rng.uniform(self.min_patches, max(self.min_patches, most - hidden))
            height, width = block(area, rng.uniform(*self.aspect))
            mask[place(mask, min(height, mask.shape[0]), min(width, mask.shape[1]), rng)] = True

    def _as_released(self, mask: Mask, rng: np.random.Generator) -> None:
        assert self.num is not None
        low, high = (math.log(edge) for edge in self.aspect)
        while (left := self.num - int(mask.sum())) > 0:
            for _ in range(TRIES):
                area = rng.uniform(min(self.min_patches, left), max(self.min_patches, left))
                height, width = block(area, math.exp(rng.uniform(low, high)))
                if height >= mask.shape[0] or width >= mask.shape[1]:
                    continue
                at = place(mask, height, width, rng)
                if 0 < (~mask[at]).sum() <= left:
                    mask[at] = True
                    break
            else:
                return


def block(area: float, aspect: float) -> tuple[int, int]:
    """Returns (height, width), at least 1 each, of a block of `area` whose height is `aspect` times its width."""
    return max(1, round(math.sqrt(area * aspect))), max(1, round(math.sqrt(area / aspect)))


def place(mask: Mask, height: int, width: int, rng: np.random.Generator) -> tuple[slice, slice]:
    """Returns a random place of a block in a mask."""
    top = int(rng.integers(mask.shape[0] - height + 1))
    left = int(rng.integers(mask.shape[1] - width + 1))
    return slice(top, top + height), slice(left, left + width)
