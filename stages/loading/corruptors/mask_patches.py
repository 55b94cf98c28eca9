"""MAE's random masking: which patches the encoder sees. He et al. 2022, https://arxiv.org/abs/2111.06377."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vlpipe.stages.loading.corruptors.base import Rng
from vlpipe.stages.loading.makers.base import EXTRA, TARGET, Maker, Sample


@dataclass(frozen=True, kw_only=True)
class MaskPatches:
    """Hides a random `ratio` of the patches of each image.

    Records extra["keep"] (B, K): the visible patches in ascending order, and target["masked"] (B, N) bool. patch: side of
    a patch in pixels. K = N - round(ratio x N) is the same for all images.
    """

    patch: int
    ratio: float = 0.75
    stream: str = "image"

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise ValueError(f"mask_patches: ratio must be between 0 and 1, got {self.ratio}")

    def __call__(self, samples: list[Sample], rng: Rng, makers: Mapping[str, Maker]) -> list[Sample]:
        for k, sample in enumerate(samples):
            item = sample[self.stream]
            height, width = item["data"].shape[-2:] if item["data"].ndim > 1 else _size(makers[self.stream])
            num = (height // self.patch) * (width // self.patch)
            order = rng(k).permutation(num)
            keep = np.sort(order[: num - round(self.ratio * num)])
            masked = np.ones(num, np.bool_)
            masked[keep] = False
            sample[self.stream] = {**item, f"{EXTRA}keep": keep, f"{TARGET}masked": masked}
        return samples


def _size(maker: Maker) -> tuple[int, int]:
    """Returns the height and width of a maker's pictures, which are not decoded yet."""
    return maker.size, maker.size  # type: ignore[attr-defined]
