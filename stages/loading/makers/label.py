"""The class of a row's picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.loading.makers.base import IGNORE, Item, Maker
from vlpipe.stages.loading.rows import Row


@dataclass(frozen=True, kw_only=True)
class Label(Maker):
    """Labels (B,) of the column `label`, whole numbers below `num_classes`; IGNORE where it is null.

    Raises VlpipeError for a label that is not below it.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("label",)

    num_classes: int

    def __call__(self, row: Row, text: str, rng: np.random.Generator) -> Item:
        label = row.columns["label"]
        if label is None:
            return {"data": np.int64(IGNORE)}
        if not isinstance(label, int) or not 0 <= label < self.num_classes:
            raise VlpipeError(
                f"row {row.id}: label is {label!r}, wanted a whole number from 0 and below num_classes {self.num_classes}"
            )
        return {"data": np.int64(label)}
