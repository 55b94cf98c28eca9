"""Overlapping patches of a picture, each cut a little smaller at random.

Oord et al. 2018 (CPC), https://arxiv.org/abs/1807.03748.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from vlpipe.stages.common.pixels import MEAN
from vlpipe.stages.loading.corruptors.base import Rng
from vlpipe.stages.loading.corruptors.pretext.pixels import pixels_of
from vlpipe.stages.loading.makers.base import Maker, Sample


@dataclass(frozen=True, kw_only=True)
class PatchGrid:
    """Makes a picture (3, H, W) patches (rows x columns, 3, patch, patch), row by row, `stride` pixels apart.

    inner: side of the random part of each patch that is kept, in its middle, with the mean colour around it (the paper: 60
    of 64). Without this corruptor, CPC cuts whole patches.
    """

    patch: int
    stride: Annotated[int, Field(ge=1)]
    inner: Annotated[int, Field(ge=1)]
    stream: str = "image"

    def __post_init__(self) -> None:
        if self.inner > self.patch:
            raise ValueError(f"patch_grid: inner must be at most patch {self.patch}, got {self.inner}")

    def __call__(self, samples: list[Sample], rng: Rng, makers: Mapping[str, Maker]) -> list[Sample]:
        spare = self.patch - self.inner
        edge = slice(spare // 2, spare // 2 + self.inner)
        for k, sample in enumerate(samples):
            item: dict[str, Any] = sample[self.stream]
            pixels, draw = pixels_of(item, "patch_grid"), rng(k)
            rows, columns = ((side - self.patch) // self.stride + 1 for side in pixels.shape[1:])
            found = np.empty((rows * columns, 3, self.patch, self.patch), np.uint8)
            found[:] = np.rint(255 * np.asarray(MEAN).reshape(3, 1, 1))
            at = draw.integers(spare + 1, size=(rows * columns, 2))
            for place, (down, right) in enumerate(at):
                top = place // columns * self.stride + int(down)
                left = place % columns * self.stride + int(right)
                found[place, :, edge, edge] = pixels[:, top : top + self.inner, left : left + self.inner]
            sample[self.stream] = {**item, "data": found}
        return samples
