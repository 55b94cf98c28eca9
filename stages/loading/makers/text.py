"""The text of a sample as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from vlpipe.stages.loading.makers.base import EXTRA, ROW, SAYS, Item, Maker, folded, note
from vlpipe.stages.loading.rows import Row

if TYPE_CHECKING:
    from vlpipe.models.interface.batch import Stream

DEFAULT_LENGTH = 30  # tokens; BLIP's pretraining
CHARACTERS = 4.5  # per token of English, about


@dataclass(frozen=True, kw_only=True)
class TokenIds(Maker):
    """Base of makers of token ids (B, L), padded with the tokenizer's padding token.

    max_length: None for as many as the model has positions. max_positions: the number of positions that the model has.
    """

    NEEDS_TEXT: ClassVar[bool] = True
    PADDED: ClassVar[bool] = True
    MIN_LENGTH: ClassVar[int]  # the special tokens and a token of each text

    tokenizer: Any = field(repr=False)
    max_length: int | None = None
    max_positions: int | None = None

    def __post_init__(self) -> None:
        if self.length < self.MIN_LENGTH:
            raise ValueError(f"max_length must be at least {self.MIN_LENGTH}, got {self.length}")
        if self.max_positions is not None and self.length > self.max_positions:
            raise ValueError(
                f"max_length must be at most {self.max_positions}, the number of positions of the model, "
                f"got {self.length}"
            )

    def count_positions(self, row: Row, text: str) -> float:
        return len(self(row, text, np.random.default_rng(0))["data"])

    @property
    def length(self) -> int:
        """Max number of tokens, special tokens included."""
        return self.max_length or self.max_positions or DEFAULT_LENGTH

    @property
    def fill(self) -> float:
        return float(self.tokenizer.pad)


@dataclass(frozen=True, kw_only=True)
class Text(TokenIds):
    """Token ids (B, L) with the tokenizer's start and end token; a longer text is cut to `max_length` tokens.

    keep_end: a text that is cut still has the end token as its last (CLIP).
    prompt: put before every text (BLIP's captioner: "a picture of "). `extra["prompt"]` (B,): the number of leading
    positions that it takes, the start token included.
    For corruptors, `words` is the number of the word that each token belongs to, -1 for start and end.
    """

    MIN_LENGTH: ClassVar[int] = 3

    prompt: str = ""
    keep_end: bool = False

    @property
    def prompt_length(self) -> int:
        """Number of positions that start token and prompt take; 0 without a prompt."""
        return 1 + len(self.tokenizer.ids(self.prompt)) if self.prompt else 0

    def num_positions(self, row: Row, text: str) -> float:
        return min(self.length, len(text) / CHARACTERS)

    def collate(self, items: Sequence[Item]) -> Stream:
        from vlpipe.models.interface.batch import IGNORE, flat_places
        from vlpipe.models.objectives.lm import NEXT, next_tokens

        found = super().collate(items)
        return replace(found, places={**found.places, NEXT: flat_places(next_tokens(found) != IGNORE)})

    def __call__(self, row: Row | None, text: str, rng: np.random.Generator) -> Item:
        ids, words = self.tokenizer.encode_one(self.prompt + text, self.length, keep_end=self.keep_end)
        item: Item = {"data": np.asarray(ids, np.int64), "words": np.asarray(words, np.int64)}
        item[SAYS] = note(folded(text))
        if row is not None:
            item[ROW] = note(row.image_id)
        if self.prompt:
            item[f"{EXTRA}prompt"] = np.int64(self.prompt_length)
        return item
