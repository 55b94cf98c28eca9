"""Holes that a context encoder fills. Pathak et al. 2016, https://arxiv.org/abs/1604.07379."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from vlpipe.stages.loading.corruptors.base import Rng
from vlpipe.stages.loading.corruptors.pretext.pixels import pixels_of
from vlpipe.stages.loading.makers.base import EXTRA, TARGET, Maker, Sample


@dataclass(frozen=True, kw_only=True)
class Holes:
    """Hides pixels: extra["hidden"] (B, H, W) bool; target["counted"] (B, H, W) float32, the weight of each pixel's error.

    kind: "centre", the middle square of half the side; "blocks", random squares, which may overlap, until a quarter is
    hidden or more than that would be. overlap: pixels along the edge of the middle square that stay visible and count
    `overlap_weight` times. block: side of a random square, as a fraction of the picture's.
    """

    kind: Literal["centre", "blocks"] = "centre"
    overlap: Annotated[int, Field(ge=0)] = 0
    overlap_weight: float = 10.0
    block: Annotated[float, Field(gt=0, lt=0.5)] = 0.2
    stream: str = "image"

    def __call__(self, samples: list[Sample], rng: Rng, makers: Mapping[str, Maker]) -> list[Sample]:
        for k, sample in enumerate(samples):
            item: dict[str, Any] = sample[self.stream]
            height, width = pixels_of(item, "holes").shape[1:]
            hidden = np.zeros((height, width), np.bool_)
            counted = np.zeros((height, width), np.float32)
            if self.kind == "centre":
                rows, columns = (slice(side // 4, side // 4 + side // 2) for side in (height, width))
                hidden[self._inner(rows), self._inner(columns)] = True
                counted[rows, columns] = self.overlap_weight
                counted[hidden] = 1
            else:
                self._blocks(hidden, rng(k))
                counted[hidden] = 1
            sample[self.stream] = {**item, f"{EXTRA}hidden": hidden, f"{TARGET}counted": counted}
        return samples

    def _inner(self, edge: slice) -> slice:
        return slice(edge.start + self.overlap, edge.stop - self.overlap)

    def _blocks(self, hidden: npt.NDArray[np.bool_], rng: np.random.Generator) -> None:
        side = max(1, round(self.block * min(hidden.shape)))
        while True:
            top, left = (int(rng.integers(length - side + 1)) for length in hidden.shape)
            more = hidden.copy()
            more[top : top + side, left : left + side] = True
            if more.mean() > 0.25 and hidden.any():
                return
            hidden[:] = more
            if hidden.mean() >= 0.25:
                return
