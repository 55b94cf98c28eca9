"""The class of a row's picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

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
        need_label(label, self.num_classes, f"row {row.id}")
        return {"data": np.int64(label)}


def need_label(label: Any, num_classes: int, where: str) -> None:
    """Raises VlpipeError if `label` is no class of a model with `num_classes`.

    Published test sets have -1 for a class that is not told; as an index it would stand for the last class.
    """
    if not isinstance(label, int) or not 0 <= label < num_classes:
        raise VlpipeError(
            f"{where}: label is {label!r}, wanted a whole number from 0 and below num_classes {num_classes}"
        )
