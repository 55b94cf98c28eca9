"""Token ids that a column already holds: the video tokens of VideoBERT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.loading.makers.base import ROW, Item, Maker, note
from vlpipe.stages.loading.rows import Row


@dataclass(frozen=True, kw_only=True)
class Codes(Maker):
    """Token ids (B, L) of the column `video_tokens`: a list of ids, or of structs with a field `token`.

    A subclass names another column. num_codes: ids are below it, and `num_codes` itself is the mask id. max_length: a longer
    row gives a random part of so many. max_stride: take every k-th id, k drawn from 1 to this (VideoBERT: 5, since the same
    action takes a different time in each video). Raises VlpipeError for an id that is not below `num_codes`.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("video_tokens",)
    PADDED: ClassVar[bool] = True

    num_codes: int
    max_length: int
    max_stride: int = 1

    def __post_init__(self) -> None:
        if min(self.num_codes, self.max_length, self.max_stride) < 1:
            raise ValueError(
                "streams: num_codes, max_length and max_stride must be at least 1, "
                f"got {self.num_codes}, {self.max_length} and {self.max_stride}"
            )

    @property
    def mask(self) -> int:
        """The id of a masked code."""
        return self.num_codes

    def num_positions(self, row: Row, text: str) -> float:
        codes = row.columns[self.COLUMNS[0]].values
        mean_stride = (1 + self.max_stride) / 2
        return 0.0 if codes is None else min(self.max_length, len(codes) / mean_stride)

    def __call__(self, row: Row, text: str, rng: np.random.Generator) -> Item:
        codes = ids_of(row.columns[self.COLUMNS[0]])
        if len(codes) and not 0 <= codes.min() <= codes.max() < self.num_codes:
            raise VlpipeError(
                f"row {row.id}: {self.COLUMNS[0]} has ids from {codes.min()} to {codes.max()}, "
                f"wanted ids below num_codes {self.num_codes}"
            )
        if self.max_stride > 1:
            stride = int(rng.integers(1, self.max_stride, endpoint=True))
            codes = codes[int(rng.integers(min(stride, max(1, len(codes))))) :: stride]
        if len(codes) > self.max_length:
            start = int(rng.integers(len(codes) - self.max_length, endpoint=True))
            codes = codes[start : start + self.max_length]
        return {"data": codes, ROW: note(row.image_id)}


def ids_of(value: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Returns the ids of an Arrow list scalar of ids, or of structs with a field `token`; none for null."""
    values = value.values
    if values is None:
        return np.zeros(0, np.int64)
    if pa.types.is_struct(values.type):
        values = values.field("token")
    return np.asarray(values.to_numpy(zero_copy_only=False), np.int64)
