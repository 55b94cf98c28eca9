"""Regions of a row together with the picture that they lie in: VL-BERT's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from vlpipe.stages.common.pixels import square
from vlpipe.stages.loading.makers.base import EXTRA, Item
from vlpipe.stages.loading.makers.image import normalised
from vlpipe.stages.loading.makers.regions import Regions
from vlpipe.stages.loading.rows import Row

if TYPE_CHECKING:
    from vlpipe.models.interface.batch import Stream


@dataclass(frozen=True, kw_only=True)
class PixelRegions(Regions):
    """As `Regions`, and extra["pixels"] (B, 3, size, size): the whole picture, resized and normalised as by `image:Image`.

    Boxes are fractions of the picture's sides, so that they hold for the resized one. Pixels are of the regions' stream, as
    what is masked in one is masked in the other.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = (*Regions.COLUMNS, "image")

    size: int

    def __call__(self, row: Row, text: str, rng: np.random.Generator) -> Item:
        image = row.rgb(lambda width, height: (0, 0, width, height), self.size)
        pixels = np.ascontiguousarray(square(image, self.size).transpose(2, 0, 1))
        return {**super().__call__(row, text, rng), f"{EXTRA}pixels": pixels}

    def on_device(self, stream: Stream) -> Stream:
        return replace(stream, extra={**stream.extra, "pixels": normalised(stream.extra["pixels"])})
