"""HowTo100M's clips: a caption, extended by its neighbours until the clip has the min duration and number of words.

Miech et al., 2019, https://arxiv.org/abs/1906.03327; https://github.com/antoine77340/howto100m `youtube_dataloader.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from vlpipe.stages.clips.captions import Caption
from vlpipe.stages.clips.pairing import NumClips, Pair, Pairing, centres, span_end

WORD = re.compile(r"[\w']+")  # a word, as in the reference code
MAX_CAPTIONS = 256  # per clip; without it, thousands of cues at the same time would all be in each clip


@dataclass(frozen=True, kw_only=True)
class HowTo100M(Pairing):
    """Returns a clip around each caption, or around `num_clips` captions drawn with replacement.

    num_clips: n_pair in the reference code, 64 per video and epoch.
    A clip grows by one caption at a time, up to 256, while it is shorter than `min_time_s` (5 in the authors' recipe; 10 is
    only the default in their code) or has fewer than `min_words` words: on the side that keeps it shorter or, with
    min_time_s 0, on the side with more words (ties: left). If one side has no more captions, it grows on the other.
    Bugs of the reference code, fixed here: words from the left are appended after the others (not in UniVL's code); a
    caption without text becomes the word "nan"; the clip ends with its last caption, even if an earlier one lasts longer.
    """

    min_time_s: Annotated[float, Field(ge=0)] = 5.0
    min_words: Annotated[int, Field(ge=0)] = 0
    num_clips: NumClips | None = None

    NAME: ClassVar[str] = "clips.howto100m:HowTo100M"

    def pairs(
        self, captions: Sequence[Caption], duration_s: float, rng: np.random.Generator
    ) -> Iterator[Pair]:
        num_words = [len(WORD.findall(caption.text)) for caption in captions]
        for centre in centres(len(captions), self.num_clips, rng):
            first, last = grow(captions, num_words, centre, self.min_time_s, self.min_words)
            yield Pair(captions[first].start_s, span_end(captions, first, last), first, last)


def grow(
    captions: Sequence[Caption], num_words: Sequence[int], centre: int, min_time_s: float, min_words: int
) -> tuple[int, int]:
    """Returns the indices of the first and last caption (inclusive) of the clip around caption `centre`.

    num_words: of each caption. The rule is that of `HowTo100M`.
    """
    first = last = centre
    words, end_s = num_words[centre], captions[centre].end_s
    while words < min_words or end_s - captions[first].start_s < min_time_s:
        left, right = first > 0, last + 1 < len(captions)
        if left and right:
            if min_time_s > 0:
                before, after = captions[first - 1], captions[last + 1]
                left_s = max(before.end_s, end_s) - before.start_s
                left = left_s <= max(after.end_s, end_s) - captions[first].start_s
            else:
                left = num_words[last + 1] <= num_words[first - 1]
        if left:
            first -= 1
            words, end_s = words + num_words[first], max(end_s, captions[first].end_s)
        elif right:
            last += 1
            words, end_s = words + num_words[last], max(end_s, captions[last].end_s)
        if last - first + 1 == MAX_CAPTIONS or not (left or right):
            break
    return first, last
