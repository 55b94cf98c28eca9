"""The class of each pixel of a row's picture."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.loading.makers.base import IGNORE, Item, Maker
from vlpipe.stages.loading.rows import Row


@dataclass(frozen=True, kw_only=True)
class PixelClasses(Maker):
    """Classes (B, size, size) int64 of the column `mask`, a PNG of ADE20K's kind: 0 for no class, k for class k - 1.

    Here IGNORE for no class. Resized without interpolation, as `image:Image` resizes the picture. Raises VlpipeError for a
    class that is not below `num_classes`.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("mask",)

    size: int
    num_classes: int

    def __call__(self, row: Row, text: str, rng: np.random.Generator) -> Item:
        given = row.columns["mask"]
        data = given.as_py() if hasattr(given, "as_py") else given
        return {"data": pixel_classes(data, self.size, self.num_classes, row.id)}


def pixel_classes(data: bytes, size: int, num_classes: int, row_id: str) -> npt.NDArray[np.int64]:
    """Returns the classes (size, size) of a mask; see `PixelClasses`."""
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(data or b""), formats=["PNG"])
        if image.mode not in ("L", "P"):
            raise VlpipeError(f"row {row_id}: the mask has mode {image.mode}, wanted one number per pixel")
        values = np.asarray(image.resize((size, size), Image.Resampling.NEAREST)).astype(np.int64)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError) as error:
        raise VlpipeError(f"row {row_id}: the mask is not a readable PNG: {error}") from error
    if values.max() > num_classes:
        raise VlpipeError(
            f"row {row_id}: the mask has class {values.max() - 1}, wanted below num_classes {num_classes}"
        )
    return np.where(values == 0, IGNORE, values - 1)
