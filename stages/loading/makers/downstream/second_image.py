"""The second picture of a row, of tasks about pairs of images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from vlpipe.stages.loading.makers.base import Item
from vlpipe.stages.loading.makers.image import Image
from vlpipe.stages.loading.rows import Row


@dataclass(frozen=True, kw_only=True)
class SecondImage(Image):
    """As `Image`, of the column `second_image`."""

    COLUMNS: ClassVar[tuple[str, ...]] = ("second_image",)

    def __call__(self, row: Row, text: str, rng: np.random.Generator) -> Item:
        one = Row(row.id, row.image_id, row.texts, {"image": row.columns["second_image"]})
        return super().__call__(one, text, rng)
