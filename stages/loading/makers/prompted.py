"""A row's own prompt and a text as one sequence of token ids: captioners that are told the alt-text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.loading.makers.base import EXTRA, ROW, SAYS, Item, folded, note
from vlpipe.stages.loading.makers.text import CHARACTERS, Text
from vlpipe.stages.loading.rows import Row


@dataclass(frozen=True, kw_only=True)
class Prompted(Text):
    """Token ids of start token, the row's column `prompt`, the sample's text and end token; see `Text` for the rest.

    `extra["prompt"]` (B,): the number of leading positions before the text, so that a loss on next words leaves the prompt
    out. max_prompt: of a longer prompt, the last so many tokens. Both together have at most `max_length`: the text is cut.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("prompt",)

    max_prompt: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt:
            raise ValueError("a row's prompt is in its column `prompt`; remove the stream's `prompt`")
        if not 1 <= self.max_prompt <= self.length - self.MIN_LENGTH:
            raise ValueError(
                f"max_prompt must be from 1 to max_length - {self.MIN_LENGTH} = {self.length - self.MIN_LENGTH}, so that "
                f"there is room for a text; got {self.max_prompt}"
            )

    def num_positions(self, row: Row, text: str) -> float:
        prompt = min(self.max_prompt, len(row.columns["prompt"] or "") / CHARACTERS)
        return min(self.length, prompt + len(text) / CHARACTERS)

    def __call__(self, row: Row | None, text: str, rng: np.random.Generator) -> Item:
        if row is None:
            raise VlpipeError("prompted: a text without a row has no prompt")
        prompt = self.tokenizer.ids(row.columns["prompt"] or "")[-self.max_prompt :]
        ids, words = self.tokenizer.encode_one(text, self.length - len(prompt), keep_end=self.keep_end)
        return {
            "data": np.asarray([ids[0], *prompt, *ids[1:]], np.int64),
            "words": np.asarray([words[0], *(-1 for _ in prompt), *words[1:]], np.int64),
            f"{EXTRA}prompt": np.int64(1 + len(prompt)),
            SAYS: note(folded(text)),
            ROW: note(row.image_id),
        }
