"""The regions of a row's second picture, of tasks about pairs of images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from vlpipe.stages.loading.makers.base import Item
from vlpipe.stages.loading.makers.regions import Regions
from vlpipe.stages.loading.rows import Row


@dataclass(frozen=True, kw_only=True)
class SecondRegions(Regions):
    """As `Regions`, of the columns `second_regions`, `second_width` and `second_height`."""

    COLUMNS: ClassVar[tuple[str, ...]] = tuple(f"second_{name}" for name in Regions.COLUMNS)

    def __call__(self, row: Row, text: str, rng: np.random.Generator) -> Item:
        return super().__call__(self._of_second(row), text, rng)

    def num_positions(self, row: Row, text: str) -> float:
        return super().num_positions(self._of_second(row), text)

    def _of_second(self, row: Row) -> Row:
        columns = {name: row.columns[f"second_{name}"] for name in Regions.COLUMNS}
        return Row(row.id, row.image_id, row.texts, columns)
