"""Masked spans of words, of geometric lengths. Joshi et al. 2020 (SpanBERT), https://arxiv.org/abs/1907.10529, section 3.1;
UNIMO masks words in the same way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vlpipe.stages.loading.corruptors.mask_text import Ints, MaskText
from vlpipe.stages.loading.makers.base import IGNORE


@dataclass(frozen=True, kw_only=True)
class MaskSpans(MaskText):
    """As `MaskText`, but spans of words are chosen until `rate` of the tokens are, rounded up; the last one is cut there.

    A span begins at the word of a token that is not chosen yet, each equally likely, and has l words with a probability
    proportional to p (1 - p)^(l - 1), up to `longest`: 3.8 on average. `split` is drawn per span: all of its tokens become
    the mask token, or random ones, or stay. whole_words: False counts lengths in tokens.
    """

    whole_words: bool = True
    p: float = 0.2
    longest: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.p < 1 or self.longest < 1:
            raise ValueError(
                f"mask_spans: p must be between 0 and 1 and longest at least 1, got {self.p}, {self.longest}"
            )

    def _masked(
        self, ids: Ints, words: Ints, rng: np.random.Generator, tokenizer: object
    ) -> tuple[Ints, Ints]:
        span = self.spans(words, rng)
        chosen = span >= 0
        draws = rng.random(int(span.max(initial=-1)) + 1)[span[chosen]]
        random_ids = rng.choice(tokenizer.plain_ids, len(draws))  # type: ignore[attr-defined]
        mask, other = self.split
        masked = ids.copy()
        masked[chosen] = np.where(
            draws < mask,
            tokenizer.mask,  # type: ignore[attr-defined]
            np.where(draws < mask + other, random_ids, ids[chosen]),
        )
        return masked, np.where(chosen, ids, IGNORE)

    def spans(self, words: Ints, rng: np.random.Generator) -> Ints:
        """Returns the number of the span of each token (L,), -1 for none. words: of each token, -1 for special tokens."""
        found = np.full(len(words), -1, np.int64)
        tokens = np.flatnonzero(words >= 0)
        unit = words[tokens] if self.whole_words else np.arange(len(tokens))
        starts = np.flatnonzero(np.diff(unit, prepend=-1))  # in `tokens`, of each word
        edges = np.append(starts, len(tokens))
        word = np.searchsorted(starts, np.arange(len(tokens)), "right") - 1  # of each token
        left = math.ceil(self.rate * len(tokens) - 1e-9)  # 0.15 x 20 is 3, whatever its last bit
        shares = (1 - self.p) ** np.arange(self.longest)
        lengths = 1 + rng.choice(self.longest, max(1, left), p=shares / shares.sum())
        number = 0
        for anchor in rng.permutation(len(tokens)):
            if not left:
                break
            if found[tokens[anchor]] >= 0:
                continue
            last = min(word[anchor] + lengths[number], len(starts))
            at = tokens[edges[word[anchor]] : edges[last]]
            at = at[found[at] < 0][:left]
            found[at] = number
            left, number = left - len(at), number + 1
        return found
