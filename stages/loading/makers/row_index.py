"""The number of a row in its data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.loading.makers.base import Item, Maker
from vlpipe.stages.loading.rows import Row


@dataclass(frozen=True, kw_only=True)
class RowIndex(Maker):
    """Numbers (B,) of the column `row_index`, which `pretext.row_index` writes.

    Raises VlpipeError for one that is not below `num_rows`.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("row_index",)

    num_rows: int

    def __call__(self, row: Row, text: str, rng: np.random.Generator) -> Item:
        index = row.columns["row_index"]
        if not isinstance(index, int) or not 0 <= index < self.num_rows:
            raise VlpipeError(
                f"row {row.id}: row_index is {index!r}, wanted a whole number below num_rows {self.num_rows}"
            )
        return {"data": np.int64(index)}
