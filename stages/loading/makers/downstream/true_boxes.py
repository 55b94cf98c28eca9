"""The ground-truth boxes of a row's picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.loading.makers.answer import as_dicts
from vlpipe.stages.loading.makers.base import EXTRA, Item, Maker
from vlpipe.stages.loading.rows import Row


@dataclass(frozen=True, kw_only=True)
class TrueBoxes(Maker):
    """Boxes (B, M, 4) float32, x1, y1, x2, y2 as fractions of the image's sides, of the column `objects`
    (`common.region_rows.OBJECTS`); extra["label"] (B, M) int64, the place of the object's label in `classes`.

    Raises VlpipeError for a label that is not in `classes`.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("objects", "width", "height")
    PADDED: ClassVar[bool] = True

    classes: Sequence[str] = ()

    def __call__(self, row: Row, text: str, rng: np.random.Generator) -> Item:
        found = as_dicts(row.columns["objects"])
        size = np.array([row.columns["width"], row.columns["height"]] * 2, np.float32)
        unknown = sorted({one["label"] for one in found} - set(self.classes))
        if unknown:
            known = ", ".join(self.classes)
            raise VlpipeError(
                f"row {row.id} has an object {unknown[0]!r}, which is not in streams.boxes.classes: {known}"
            )
        boxes = np.array([one["box"] for one in found], np.float32).reshape(-1, 4) / size
        labels = np.array([self.classes.index(one["label"]) for one in found], np.int64)
        return {"data": boxes, f"{EXTRA}label": labels}

    def num_positions(self, row: Row, text: str) -> float:
        return float(len(as_dicts(row.columns["objects"])))
