"""The codes of a row's picture, without the picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.loading.makers.base import Item, Maker
from vlpipe.stages.loading.makers.codes import ids_of
from vlpipe.stages.loading.rows import Row


@dataclass(frozen=True, kw_only=True)
class CodeGrid(Maker):
    """Codes (B, num_places) of the column `image_codes`, row by row, as `image_codes.codes` and `image_codes.tokens` write.

    size: side of the picture in pixels, for what asks for it. Raises VlpipeError for a row with another number of codes, or
    with one that is not below `num_codes`.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("image_codes",)

    num_codes: int
    num_places: int
    size: int | None = None

    def __call__(self, row: Row, text: str, rng: np.random.Generator) -> Item:
        return {"data": checked(row, self.num_codes, self.num_places)}


def checked(row: Row, num_codes: int, num_places: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Returns the codes (num_places,) of a row. Raises VlpipeError for another number of codes, or one too large."""
    codes = ids_of(row.columns["image_codes"])
    if len(codes) != num_places or not 0 <= codes.min() <= codes.max() < num_codes:
        raise VlpipeError(
            f"row {row.id}: image_codes has {len(codes)} codes"
            + (f" from {codes.min()} to {codes.max()}" if len(codes) else "")
            + f", wanted {num_places} below num_codes {num_codes}"
        )
    return codes
