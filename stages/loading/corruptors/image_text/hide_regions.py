"""Regions that are hidden in the picture itself: VL-BERT's. Su et al. 2019, https://arxiv.org/abs/1908.08530."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from vlpipe.stages.loading.corruptors.base import Rng
from vlpipe.stages.loading.makers.base import EXTRA, TARGET, Maker, Sample


@dataclass(frozen=True, kw_only=True)
class HideRegions:
    """Masks regions. Records target["masked"] (B, R), what is predicted, and extra["hidden"] (B, R), what is not shown.

    Each region is chosen with probability `rate`, at least `at_least` per sample; of those chosen, the share `hide` is
    hidden, the rest stays. Of a hidden region, the feature becomes zero, and the pixels of `pixel_regions:PixelRegions`
    become zero wherever its box covers a part of them. pixels: False leaves those as they are, a control: the network that
    reads them then sees what is to be predicted.
    """

    stream: str = "regions"
    rate: Annotated[float, Field(gt=0, lt=1)] = 0.15
    at_least: Annotated[int, Field(ge=0)] = 0
    hide: Annotated[float, Field(ge=0, le=1)] = 0.9
    pixels: bool = True

    def __call__(self, samples: list[Sample], rng: Rng, makers: Mapping[str, Maker]) -> list[Sample]:
        for k, sample in enumerate(samples):
            item, draw = sample[self.stream], rng(k)
            num = len(item["data"])
            masked = draw.random(num) < self.rate
            if masked.sum() < self.at_least:
                masked[draw.permutation(num)[: self.at_least]] = True
            hidden = masked & (draw.random(num) < self.hide)
            new = {**item, "data": np.where(hidden[:, None], np.float32(0), item["data"])}
            new |= {f"{TARGET}masked": masked, f"{EXTRA}hidden": hidden}
            if self.pixels and f"{EXTRA}pixels" in item:
                new[f"{EXTRA}pixels"] = blanked(item[f"{EXTRA}pixels"], item[f"{EXTRA}box"][hidden])
            sample[self.stream] = new
        return samples


def blanked(pixels: npt.NDArray[np.uint8], boxes: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Returns pixels (3, H, W) with zeros in each pixel that one of the boxes (N, 4), from 0 to 1, touches."""
    found, (height, width) = pixels.copy(), pixels.shape[1:]
    for x1, y1, x2, y2 in boxes.tolist():
        rows = slice(max(0, math.floor(y1 * height)), math.ceil(y2 * height))
        found[:, rows, max(0, math.floor(x1 * width)) : math.ceil(x2 * width)] = 0
    return found
