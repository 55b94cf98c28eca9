"""The picture of a row as pixels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from vlpipe.stages.common.pixels import MEAN, STD, square
from vlpipe.stages.loading.augment import Augmentation, augmented
from vlpipe.stages.loading.makers.base import Item, Maker
from vlpipe.stages.loading.rows import Row

if TYPE_CHECKING:
    import torch
    from torch import Tensor

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


def normalised(pixels: Tensor) -> Tensor:
    """Returns pixels (..., 3, H, W) uint8 as float32, with the values of `common.pixels.to_pixels`."""
    most, mean, std = _constants(pixels.device)
    return (pixels.float() / most - mean) / std


@lru_cache(maxsize=16)
def _constants(device: torch.device) -> list[Tensor]:
    """Returns 255, MEAN and STD, each (N, 1, 1). They are tensors, because a GPU divides by a plain number inexactly."""
    import torch

    with torch.inference_mode(False):
        values = [torch.tensor(v, dtype=torch.float32).view(-1, 1, 1) for v in ((255.0,), MEAN, STD)]
        return [value.to(device) for value in values]
