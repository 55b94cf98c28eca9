"""Base class of the two stages that compare texts with windows of a video: the text encoder and its parameters."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from vlpipe.pipeline.files import File, Weights
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.alignment.encoders import Encode, same_weights, text_encoder, window_column
from vlpipe.stages.common.batches import batch_size_problems
from vlpipe.stages.features.windows import WindowFeats


@dataclass(frozen=True, kw_only=True)
class TextWindowStage(MapStage):
    """Encodes texts with `model`, for comparison with the window vectors that this model has computed.

    words: MIL-NCE's word list. With it, the vectors are those of column `s3d`; without, those of `frame_feats`.
    encoder, max_words: as in `alignment.clip_text_score`.
    """

    LOADS_WEIGHTS: ClassVar[bool] = True
    TORCH: ClassVar[bool] = True
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"encoder"})

    model: Weights
    words: File | None = None
    encoder: str = ""
    max_words: int = 20
    batch_size: int = 64

    @property
    def column(self) -> str:
        """The heavy column of windows that the stage reads."""
        return window_column(self.words)

    @property
    def READS_HEAVY(self) -> tuple[str, ...]:  # type: ignore[override]  # depends on `words`
        return (self.column,)

    def preflight(self) -> list[str]:
        return batch_size_problems(self.batch_size)

    @contextmanager
    def open(self) -> Iterator[Work]:
        encode = text_encoder(self.model, self.words, self.max_words, self.batch_size)
        yield lambda rows: self.compare(rows, encode, same_weights(rows, self.column, self.model))

    @abstractmethod
    def compare(self, rows: pa.Table, encode: Encode, windows: Iterator[WindowFeats]) -> pa.Table:
        """Returns the rows with new columns. encode: N texts -> (N, D); windows: one `WindowFeats` per row."""
