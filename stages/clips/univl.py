"""UniVL's clips: HowTo100M's clips, rounded to whole seconds for features at 1 per second.

Luo et al., 2020, https://arxiv.org/abs/2002.06353; https://github.com/microsoft/UniVL `dataloader_howto100m.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from vlpipe.stages.clips.captions import Caption
from vlpipe.stages.clips.howto100m import WORD, grow
from vlpipe.stages.clips.pairing import NumClips, Pair, Pairing, span_end


@dataclass(frozen=True, kw_only=True)
class UniVL(Pairing):
    """Returns a clip around each caption, or around `num_clips` captions (n_pair in the reference code: 3).

    These are drawn without replacement; if the video has fewer captions, the rest are drawn with replacement.
    The text grows as in `clips.howto100m` (min_time_s is 5 in the authors' recipe; min_words counts words here, and BERT
    word pieces in their code). The clip starts and ends at whole seconds and includes the second that contains its end: 3.4
    to 7.2 s becomes 3 to 8 s, and so does 3 to 7 s. It is cut at the video's last whole second and after `max_seconds`
    (max_frames in their code: 64). If nothing is left, as for a caption in the last, incomplete second, its time span (not
    its text) is extended by the captions to the left and right in turn.
    Bugs of the reference code, fixed here: an empty clip is extended by the other drawn captions, in random order, instead
    of its neighbours in time; and those listed in `clips.howto100m`, whose code it shares.
    """

    min_time_s: Annotated[float, Field(ge=0)] = 5.0
    min_words: Annotated[int, Field(ge=0)] = 0
    max_seconds: Annotated[int, Field(ge=1)] = 64
    num_clips: NumClips | None = None

    NAME: ClassVar[str] = "clips.univl:UniVL"

    def pairs(
        self, captions: Sequence[Caption], duration_s: float, rng: np.random.Generator
    ) -> Iterator[Pair]:
        num_words = [len(WORD.findall(caption.text)) for caption in captions]
        for centre in self._centres(len(captions), rng):
            first, last = grow(captions, num_words, centre, self.min_time_s, self.min_words)
            start, end = seconds(captions, first, last, duration_s)
            yield Pair(float(start), float(min(end, start + self.max_seconds)), first, last)

    def _centres(self, num: int, rng: np.random.Generator) -> list[int]:
        if self.num_clips is None:
            return list(range(num))
        again = rng.integers(num, size=max(0, self.num_clips - num))
        return [*rng.permutation(num)[: self.num_clips].tolist(), *again.tolist()]


def seconds(captions: Sequence[Caption], first: int, last: int, duration_s: float) -> tuple[int, int]:
    """Returns the whole seconds [start, end) of captions `first` to `last`, inclusive: 3.4 to 7.2 s becomes (3, 8).

    If they lie past the video's last whole second, the next captions on the left and right are added in turn until the span
    has a whole second. If all captions lie past it, start equals end.
    """
    num = duration_s if math.isinf(duration_s) else int(duration_s)
    go_left = True
    while True:
        start, end = int(captions[first].start_s), int(span_end(captions, first, last)) + 1
        end = int(min(end, num))
        if start < end:
            return start, end
        if first == 0 and last == len(captions) - 1:
            return start, start
        if go_left:
            first = max(0, first - 1)
        else:
            last = min(len(captions) - 1, last + 1)
        go_left = not go_left
