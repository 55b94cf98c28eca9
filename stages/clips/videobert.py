"""VideoBERT's segments: a sentence, and the video during it.

Sun et al., 2019, https://arxiv.org/abs/1904.01766, section 4.1. No code was published.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from vlpipe.stages.clips.captions import Caption
from vlpipe.stages.clips.pairing import Pair, Pairing
from vlpipe.stages.clips.sentences import sentences


@dataclass(frozen=True, kw_only=True)
class VideoBert(Pairing):
    """Returns one clip per sentence, or per several in a row that are joined at random, with its time span.

    max_gap_s, max_words: see `clips.sentences`; 1 s and 20 words as in TAN. join: probability that a sentence is joined with
    the one before it, so that a text is of 1 / (1 - join) sentences on average; each sentence is in one text. The paper
    joins neighbours at random, since narration and picture are often not at the same time, and does not say how often.
    copies: how many times a video is cut, with other draws each time; a text that two of them have is listed once.

    Roll-up captions (each repeats words of the previous one) are merged earlier, by the stage that reads them. Dropping
    frames, as in the paper, is left to a data loader.
    """

    ADDED: ClassVar[frozenset[str]] = Pairing.ADDED | {"join", "copies"}

    join: Annotated[float, Field(ge=0, lt=1)] = 0.0
    copies: Annotated[int, Field(ge=1)] = 1
    max_gap_s: Annotated[float, Field(ge=0)] = 1.0
    max_words: Annotated[int, Field(ge=1)] = 20

    NAME: ClassVar[str] = "clips.videobert:VideoBert"

    def units(self, captions: Sequence[Caption]) -> Sequence[Caption]:
        return sentences(captions, self.max_gap_s, self.max_words)

    def pairs(
        self, captions: Sequence[Caption], duration_s: float, rng: np.random.Generator
    ) -> Iterator[Pair]:
        found: dict[tuple[int, int], None] = {}
        for _ in range(self.copies):
            joins = rng.random(len(captions)) < self.join
            starts = [k for k in range(len(captions)) if not k or not joins[k]]
            found |= dict.fromkeys(zip(starts, [k - 1 for k in (*starts[1:], len(captions))], strict=True))
        for first, last in sorted(found):
            yield Pair(captions[first].start_s, max(c.end_s for c in captions[first : last + 1]), first, last)
