"""The picture of a row as pixels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from vlpipe.stages.common.pixels import normalised, square
from vlpipe.stages.loading.augment import Augmentation, augmented
from vlpipe.stages.loading.makers.base import Item, Maker
from vlpipe.stages.loading.rows import Row

if TYPE_CHECKING:
    from vlpipe.models.interface.batch import Stream


@dataclass(frozen=True, kw_only=True)
class Image(Maker):
    """Pixels (B, 3, size, size) float32, resized without a crop and normalised with CLIP's mean and deviation.

    Items are uint8; they are normalised on the training device. A JPEG that is much larger than needed is decoded at 1/2,
    1/4 or 1/8 of its size.

    augment: random crop, flip and RandAugment before that; see `Augmentation`.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("image",)

    size: int
    augment: Augmentation | None = None

    def __call__(self, row: Row, text: str, rng: np.random.Generator) -> Item:
        if self.augment is None:
            image = row.rgb(lambda width, height: (0, 0, width, height), self.size)
        else:
            image = augmented(row.rgb, self.augment, self.size, text, rng)
        return {"data": np.ascontiguousarray(square(image, self.size).transpose(2, 0, 1))}

    def on_device(self, stream: Stream) -> Stream:
        return replace(stream, data=normalised(stream.data))
