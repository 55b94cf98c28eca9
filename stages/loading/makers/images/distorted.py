"""The picture of a row, distorted as contrastive learning does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vlpipe.stages.common.pixels import square
from vlpipe.stages.loading.augment import augmented
from vlpipe.stages.loading.distort import Distortion, drawn
from vlpipe.stages.loading.makers.base import Item
from vlpipe.stages.loading.makers.image import Image
from vlpipe.stages.loading.rows import Row


@dataclass(frozen=True, kw_only=True)
class Distorted(Image):
    """As `Image`, with colour jitter, grey, blur and solarisation after crop and flip; see `Distortion`.

    Two streams of a model that each have this maker are two views of a picture, since each stream has draws of its own.
    """

    augment: Distortion | None = None

    def __call__(self, row: Row, text: str, rng: np.random.Generator) -> Item:
        return {"data": self.pixels(row, text, rng, self.size)}

    def pixels(self, row: Row, text: str, rng: np.random.Generator, size: int) -> npt.NDArray[np.uint8]:
        """Returns the distorted picture, (3, size, size)."""
        spec = self.augment or Distortion()
        image = augmented(row.rgb, spec, size, text, rng)
        for operation in drawn(spec, rng):
            image = operation(image)
        return np.ascontiguousarray(square(image, size).transpose(2, 0, 1))
