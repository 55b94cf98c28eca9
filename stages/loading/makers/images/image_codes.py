"""The picture of a row with the codes of its places, which a column holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from vlpipe.stages.loading.makers.base import EXTRA, Item
from vlpipe.stages.loading.makers.image import Image
from vlpipe.stages.loading.makers.images.code_grid import checked
from vlpipe.stages.loading.rows import Row


@dataclass(frozen=True, kw_only=True)
class ImageWithCodes(Image):
    """As `Image`, undistorted, since the codes are of the whole picture.

    extra["codes"] (B, num_places): the column `image_codes`, which `image_codes.codes` writes. Raises VlpipeError for a row
    with another number of codes, or with one that is not below `num_codes`.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("image", "image_codes")

    num_codes: int
    num_places: int

    def __post_init__(self) -> None:
        if self.augment is not None:
            raise ValueError(
                "the codes of the column image_codes are of the whole picture, so it cannot be cut or distorted; leave out "
                "augment, or give the model a codebook and this stream the maker two_sizes:TwoSizes"
            )

    def __call__(self, row: Row, text: str, rng: np.random.Generator) -> Item:
        codes = checked(row, self.num_codes, self.num_places)
        return {**super().__call__(row, text, rng), f"{EXTRA}codes": codes}
