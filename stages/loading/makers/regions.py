"""The regions that a detector found in a row's image: features, boxes and classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.common.region_rows import Arrays, image_arrays
from vlpipe.stages.loading.makers.base import EXTRA, ROW, Item, Maker, note
from vlpipe.stages.loading.rows import Row

CLASSES = (("obj", np.int64), ("obj_conf", np.float32), ("attr", np.int64), ("attr_conf", np.float32))


@dataclass(frozen=True, kw_only=True)
class Regions(Maker):
    """Features (B, R, feat_dim) float32 of the regions in the columns that `common.region_rows` describes.

    extra: `box` (B, R, 4): x1, y1, x2, y2 divided by the image's width and height; `obj`, `obj_conf`, `attr`, `attr_conf`
    (B, R): the detector's classes. num: of an image with more regions, the `num` with the highest `obj_conf`, in their
    stored order. exact: an image with fewer than `num` is an error (LXMERT has 36 of each image).
    feat_dim: the width that the model reads; None for any. probs: also `prob` (B, R, classes) float16, the detector's
    probabilities of all classes, the last for background.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("regions", "width", "height")
    PADDED: ClassVar[bool] = True

    num: int = 36
    exact: bool = False
    feat_dim: int | None = None
    probs: bool = False

    def __post_init__(self) -> None:
        if self.num < 1:
            raise ValueError(f"streams.regions: num must be at least 1, got {self.num}")

    def __call__(self, row: Row, text: str, rng: np.random.Generator) -> Item:
        found = self._chosen(arrays_of(row.columns["regions"]), row.id)
        size = np.array([row.columns["width"], row.columns["height"]] * 2, np.float32)
        item: Item = {"data": found["feat"].astype(np.float32), f"{EXTRA}box": found["box"] / size}
        item[ROW] = note(row.image_id)
        for name, dtype in CLASSES:
            item[f"{EXTRA}{name}"] = found[name].astype(dtype)
        if self.probs:
            item[f"{EXTRA}prob"] = found["prob"]
        return item

    def num_positions(self, row: Row, text: str) -> float:
        found = row.columns["regions"].values
        return 0.0 if found is None else min(self.num, len(found))

    def _chosen(self, found: Arrays, row_id: str) -> Arrays:
        has, width = found["feat"].shape
        if has < (self.num if self.exact else 1):
            wanted = f"{self.num} regions, as `exact` says" if self.exact else "at least one region"
            raise VlpipeError(f"streams.regions: row {row_id} has {has}, wanted {wanted}")
        if self.feat_dim not in (None, width):
            raise VlpipeError(
                f"streams.regions: features of row {row_id} have {width} values, the model reads {self.feat_dim}"
            )
        if has <= self.num:
            return found
        best = np.sort(np.argsort(-found["obj_conf"], kind="stable")[: self.num])
        return {name: values[best] for name, values in found.items()}


def arrays_of(value: Any) -> Arrays:
    """Returns the fields (N, ...) of one image's regions, from its value in the column (an Arrow scalar)."""
    if value.values is None:
        raise VlpipeError(
            "streams.regions: a row has null regions; add a step before training that rejects it"
        )
    return image_arrays(pa.ListArray.from_arrays(pa.array([0, len(value.values)], pa.int32()), value.values))[
        0
    ]
