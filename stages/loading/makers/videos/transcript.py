"""What is said during a clip, as a model reads it that writes a caption of the clip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from vlpipe.stages.loading.makers.base import ROW, Item, note
from vlpipe.stages.loading.makers.text import TokenIds
from vlpipe.stages.loading.rows import Row


@dataclass(frozen=True, kw_only=True)
class NoTranscript(TokenIds):
    """Token ids (B, 2) of the start and the end token: nothing is said, or it is not known."""

    NEEDS_TEXT: ClassVar[bool] = False
    MIN_LENGTH: ClassVar[int] = 2

    def __call__(self, row: Row | None, text: str, rng: np.random.Generator) -> Item:
        return self.said(row, "")

    def said(self, row: Row | None, what: str) -> Item:
        """Returns the item of a text: start token, words, end token, cut to `length` tokens."""
        ids, words = self.tokenizer.encode_one(what, self.length)
        item: Item = {"data": np.asarray(ids, np.int64), "words": np.asarray(words, np.int64)}
        return item if row is None else {**item, ROW: note(row.image_id)}


@dataclass(frozen=True, kw_only=True)
class Transcript(NoTranscript):
    """Token ids (B, L) of the column `transcript`, a string; null: nothing is said."""

    COLUMNS: ClassVar[tuple[str, ...]] = ("transcript",)

    def __call__(self, row: Row | None, text: str, rng: np.random.Generator) -> Item:
        found = None if row is None else row.columns["transcript"]
        return self.said(row, (found if isinstance(found, str | None) else found.as_py()) or "")
