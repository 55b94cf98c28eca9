"""VideoCLIP's clips: a span of text, and a span of video that overlaps it but starts and ends elsewhere.

Xu et al., 2021, https://arxiv.org/abs/2109.14084; https://github.com/facebookresearch/fairseq
`examples/MMPT/mmpt/processors/how2processor.py` (OverlappedAligner).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from vlpipe.stages.clips.captions import Caption
from vlpipe.stages.clips.pairing import NumClips, Pair, Pairing, centres, span_end


@dataclass(frozen=True, kw_only=True)
class VideoClip(Pairing):
    """Returns `num_clips` clips per video, around captions drawn with replacement; None: a clip around each caption.

    Text: captions are added on random sides until a number of words drawn from min_words to max_words is reached (8 to 61
    BERT word pieces in the paper; we count words). Clip: starting with a second drawn within the text's time span, seconds
    of the video are added on random sides until a number drawn from min_seconds to max_seconds (3 to 32) is reached.
    Bug of the reference code, fixed here: that second may be just after the text, or the clip may grow away from it, so that
    text and clip do not overlap.
    """

    min_words: Annotated[int, Field(ge=1)] = 8
    max_words: Annotated[int, Field(ge=1)] = 61
    min_seconds: Annotated[int, Field(ge=1)] = 3
    max_seconds: Annotated[int, Field(ge=1)] = 32
    num_clips: NumClips | None = 16

    NAME: ClassVar[str] = "clips.videoclip:VideoClip"

    def preflight(self) -> list[str]:
        problems = super().preflight()
        for name in ("words", "seconds"):
            low, high = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if low > high:
                problems.append(
                    f"min_{name} must be at most max_{name}; got min_{name}: {low}, max_{name}: {high}"
                )
        return problems

    def pairs(
        self, captions: Sequence[Caption], duration_s: float, rng: np.random.Generator
    ) -> Iterator[Pair]:
        num_words = [len(caption.text.split()) for caption in captions]
        for centre in centres(len(captions), self.num_clips, rng):
            wanted = int(rng.integers(self.min_words, self.max_words + 1))
            first, last = grow_text(num_words, centre, wanted, rng)
            length = int(rng.integers(self.min_seconds, self.max_seconds + 1))
            low, high = captions[first].start_s, span_end(captions, first, last)
            start, end = grow_clip(low, high, length, duration_s, rng)
            yield Pair(float(start), min(float(end), duration_s), first, last)


def grow_text(
    num_words: Sequence[int], centre: int, wanted: int, rng: np.random.Generator
) -> tuple[int, int]:
    """Returns (first, last), inclusive indices: `centre` plus captions added on random sides until they have `wanted` words.

    All captions, if they have fewer. num_words: of each caption.
    """
    first = last = centre
    words = num_words[centre]
    while words < wanted and (first > 0 or last + 1 < len(num_words)):
        right = bool(rng.integers(2))
        if first == 0 or (right and last + 1 < len(num_words)):
            last += 1
            words += num_words[last]
        else:
            first -= 1
            words += num_words[first]
    return first, last


def grow_clip(
    low_s: float, high_s: float, length: int, duration_s: float, rng: np.random.Generator
) -> tuple[int, int]:
    """Returns `length` whole seconds [start, end) around a random second of those from low_s to high_s.

    They lie within the video, whose last second may be incomplete; fewer than `length` if it is shorter.
    """
    num = duration_s if math.isinf(duration_s) else max(1, math.ceil(duration_s))
    start = int(rng.integers(math.floor(low_s), max(math.floor(low_s) + 1, math.ceil(high_s))))
    end = start + 1
    while end - start < length and (start > 0 or end < num):
        right = bool(rng.integers(2))
        if start == 0 or (right and end < num):
            end += 1
        else:
            start -= 1
    return start, end
