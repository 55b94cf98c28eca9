"""Two texts of a row as one sequence of token ids: BERT's sentences, VisualBERT's captions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.loading.makers.base import EXTRA, ROW, SAYS, Item, folded, note
from vlpipe.stages.loading.makers.text import CHARACTERS, TokenIds
from vlpipe.stages.loading.rows import Row

FIRST, SECOND = "first", "second"  # keys of notes of an item: its two texts
# Latin stops before a space; the ideographic full stop, and fullwidth exclamation and question mark
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f])\s*")


@dataclass(frozen=True, kw_only=True)
class TextPair(TokenIds):
    """Token ids (B, L) of `[CLS] first [SEP] second [SEP]`; `extra["segment"]` (B, L): 0 up to the first [SEP], then 1.

    of: "texts", the sample's text and the row's next usable text; if it is the last one, the one before it and itself.
    "sentences": the sample's text, split after one of its sentences, which is drawn. max_length: None for as many as the
    model has positions; if both are too long together, tokens are taken off the end of the longer one. Raises VlpipeError
    for a row with one text, or for a text of one sentence.
    """

    MIN_LENGTH: ClassVar[int] = 5

    of: Literal["texts", "sentences"] = "texts"

    def num_positions(self, row: Row, text: str) -> float:
        both = text if self.of == "sentences" else " ".join(self._texts(row, text))
        return min(self.length, len(both) / CHARACTERS)

    def __call__(self, row: Row, text: str, rng: np.random.Generator) -> Item:
        first, second = self._sentences(row, text, rng) if self.of == "sentences" else self._texts(row, text)
        return {**self.encoded(first, second), ROW: note(row.image_id)}

    def encoded(self, first: str, second: str) -> Item:
        """Returns the item of two texts."""
        ids, words, segment = self.tokenizer.encode_pair(first, second, self.length)
        return {
            "data": np.asarray(ids, np.int64),
            "words": np.asarray(words, np.int64),
            f"{EXTRA}segment": np.asarray(segment, np.int64),
            FIRST: note(first),
            SECOND: note(second),
            SAYS: note(folded(f"{first} {second}")),
        }

    def _texts(self, row: Row, text: str) -> tuple[str, str]:
        if len(row.texts) < 2:
            raise VlpipeError(
                f"text_pair: row {row.id} has one usable text, wanted at least two; add a step before training that "
                "rejects such rows"
            )
        at = min(row.texts.index(text), len(row.texts) - 2)
        return row.texts[at], row.texts[at + 1]

    def _sentences(self, row: Row, text: str, rng: np.random.Generator) -> tuple[str, str]:
        ends = [
            found.span() for found in SENTENCE_END.finditer(text.strip()) if found.end() < len(text.strip())
        ]
        if not ends:
            raise VlpipeError(
                f"text_pair: a text of row {row.id} has one sentence, wanted at least two; add a step before training "
                "that drops such texts"
            )
        stop, start = ends[int(rng.integers(len(ends)))]
        return text.strip()[:stop], text.strip()[start:]
