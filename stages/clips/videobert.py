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
    """Returns one clip per sentence, with its time span.

    max_gap_s, max_words: see `clips.sentences`; 1 s and 20 words as in TAN.

    Roll-up captions (each repeats words of the previous one) are merged earlier, by the stage that reads them. Randomly
    joining neighbours and dropping frames, as in the paper, is left to a data loader.
    """

    max_gap_s: Annotated[float, Field(ge=0)] = 1.0
    max_words: Annotated[int, Field(ge=1)] = 20

    NAME: ClassVar[str] = "clips.videobert:VideoBert"

    def units(self, captions: Sequence[Caption]) -> Sequence[Caption]:
        return sentences(captions, self.max_gap_s, self.max_words)

    def pairs(
        self, captions: Sequence[Caption], duration_s: float, rng: np.random.Generator
    ) -> Iterator[Pair]:
        for number, sentence in enumerate(captions):
            yield Pair(sentence.start_s, sentence.end_s, number, number)
