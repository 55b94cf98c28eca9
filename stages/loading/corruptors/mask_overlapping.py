"""Masked regions with all that overlap them, so that none can be copied from its neighbour: UNIMO, InterBERT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vlpipe.stages.loading.corruptors.base import Rng
from vlpipe.stages.loading.corruptors.mask_regions import MaskRegions
from vlpipe.stages.loading.makers.base import EXTRA, TARGET, Maker, Sample

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class MaskOverlapping(MaskRegions):
    """As `MaskRegions`, and masks each region whose IoU with a chosen one is above `iou`: UNIMO 0.3 (released code 0.4),
    InterBERT 0.4. Regions that overlap those alone stay. Features that are masked become zeros, by default.
    """

    at_least: int = 1
    split: tuple[float, float] = (1.0, 0.0)
    iou: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.iou < 1:
            raise ValueError(f"mask_overlapping: iou must be at least 0 and below 1, got {self.iou}")

    def __call__(self, samples: list[Sample], rng: Rng, makers: Mapping[str, Maker]) -> list[Sample]:
        before = [sample[self.stream]["data"] for sample in samples]
        samples = super().__call__(samples, rng, makers)
        for sample, feats in zip(samples, before, strict=True):
            item = sample[self.stream]
            chosen = item[f"{TARGET}masked"]
            near = overlaps(item[f"{EXTRA}box"]) > self.iou
            more = near[:, chosen].any(1) & ~chosen
            data = item["data"].copy()
            data[more] = 0
            sample[self.stream] = {
                **item,
                "data": data,
                f"{TARGET}masked": chosen | more,
                f"{TARGET}feat": feats,
            }
        return samples


def overlaps(boxes: Floats) -> Floats:
    """Returns the IoU (N, N) of boxes (N, 4), x1, y1, x2, y2; 0 for boxes without area."""
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    both = np.clip(high - low, 0, None).prod(-1)
    area = np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(-1)
    found: Floats = both / np.maximum(area[:, None] + area[None] - both, 1e-12)
    return found
