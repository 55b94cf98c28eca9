"""Sentences of a long caption, drawn anew for each sample.

A long caption says more than a short text encoder reads, and its first sentence less than all of it. DreamLIP (Zheng et al.,
2024, https://arxiv.org/abs/2403.17007) draws sub-captions of a model's long captions as positives; CLIPS (Liu et al., 2024,
https://arxiv.org/abs/2411.16828) finds that parts of synthetic captions train CLIP better than all of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vlpipe.stages.loading.makers.base import Item
from vlpipe.stages.loading.makers.text import CHARACTERS, Text
from vlpipe.stages.loading.makers.text_pair import SENTENCE_END
from vlpipe.stages.loading.rows import Row

# A stop behind one of these, or behind a single capital, ends no sentence.
ABBREVIATION = re.compile(
    r"(?:^|[\s(\"'])(?:mr|mrs|ms|dr|st|no|vs|approx|fig|jr|sr|prof|e\.g|i\.e|[A-Z])\.$", re.IGNORECASE
)
SHORT = re.compile(r"(?:^|[\s(\"'])[a-z]\.$")  # a single small letter is a word: "plan b."
MAX_CHARS = 20_000  # of a text that are looked at


def sentences(text: str) -> list[str]:
    """Returns the sentences of a text, in order; the text itself if it has one. Linear in its length."""
    text = text.strip()[:MAX_CHARS]
    found, start = [], 0
    for end in SENTENCE_END.finditer(text):
        piece = text[start : end.start()]
        if end.end() == len(text) or not piece.strip() or _goes_on(piece[-12:]):
            continue
        found.append(piece.strip())
        start = end.end()
    return [*found, text[start:].strip()]


def _goes_on(end: str) -> bool:
    return ABBREVIATION.search(end) is not None and SHORT.search(end) is None


@dataclass(frozen=True, kw_only=True)
class Sentences(Text):
    """Token ids of `num` sentences of the sample's text, in their order; see `Text` for the rest. Drawn for each sample.

    of: "any" sentences, a "run" of neighbours that begins anywhere, or the "first". whole: probability that the whole text
    is taken instead, as for a text of at most `num` sentences. With `texts: pairs` and `copies`, a long caption can occur
    several times in an epoch, each time with other sentences.
    """

    num: int = 1
    of: Literal["any", "run", "first"] = "any"
    whole: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num < 1:
            raise ValueError(f"num must be at least 1, got {self.num}")
        if not 0 <= self.whole <= 1:
            raise ValueError(f"whole must be from 0 to 1, got {self.whole}")

    def num_positions(self, row: Row, text: str) -> float:
        share = min(1.0, self.num / len(sentences(text)))
        return min(self.length, len(text) * (self.whole + (1 - self.whole) * share) / CHARACTERS)

    def count_positions(self, row: Row, text: str) -> float:
        return self.num_positions(row, text)  # what is drawn is not known yet

    def __call__(self, row: Row | None, text: str, rng: np.random.Generator) -> Item:
        return super().__call__(row, self.drawn(text, rng), rng)

    def drawn(self, text: str, rng: np.random.Generator) -> str:
        """Returns the sentences of a sample."""
        found = sentences(text)
        if len(found) <= self.num or rng.random() < self.whole:
            return text
        if self.of == "first":
            return " ".join(found[: self.num])
        if self.of == "run":
            start = int(rng.integers(len(found) - self.num + 1))
            return " ".join(found[start : start + self.num])
        return " ".join(found[at] for at in sorted(rng.permutation(len(found))[: self.num].tolist()))
