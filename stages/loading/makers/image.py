"""The picture of a row as pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from vlpipe.stages.common.pixels import to_pixels
from vlpipe.stages.loading.augment import Augmentation, augmented
from vlpipe.stages.loading.makers.base import Item, Maker
from vlpipe.stages.loading.rows import Row


@dataclass(frozen=True, kw_only=True)
class Image(Maker):
    """Pixels (B, 3, size, size) float32, resized without a crop and normalised with CLIP's mean and deviation.

    augment: random crop, flip and RandAugment before that; see `Augmentation`.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("image",)

    size: int
    augment: Augmentation | None = None

    def __call__(self, row: Row, text: str, rng: np.random.Generator) -> Item:
        image = row.rgb()
        if self.augment is not None:
            image = augmented(image, self.augment, self.size, text, rng)
        return {"data": to_pixels(image, self.size)}
