"""A text in two parts: the start is given, the rest is learned."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from vlpipe.stages.loading.makers.base import EXTRA, Item
from vlpipe.stages.loading.makers.text import Text
from vlpipe.stages.loading.rows import Row

PREFIX = "prefix"


@dataclass(frozen=True, kw_only=True)
class PrefixText(Text):
    """As `Text`, of the second part of a text that is cut between two words, which are drawn; a text of one word is not
    cut.

    extra["prefix"] (B, K): ids of the prompt, the first part and the end token; extra["prefix_mask"] (B, K). That is the
    prefix language modelling by which BLIP-2 trains with encoder-decoder models (https://arxiv.org/abs/2301.12597, section
    3.2): the encoder reads the prefix, the decoder learns the rest.
    """

    def __call__(self, row: Row | None, text: str, rng: np.random.Generator) -> Item:
        words = text.split()
        at = int(rng.integers(1, len(words))) if len(words) > 1 else 0
        rest = replace(self, prompt="")
        item = Text.__call__(rest, row, " ".join(words[at:]), rng)
        first = self.tokenizer.ids(self.prompt + " ".join(words[:at]))
        ids = [*first[: self.length - 1], self.tokenizer.end]
        item[f"{EXTRA}{PREFIX}"] = np.asarray(ids, np.int64)
        item[f"{EXTRA}{PREFIX}_mask"] = np.ones(len(ids), bool)
        return item
