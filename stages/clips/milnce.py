"""MIL-NCE's clips: the time of one caption, with the nearest captions as a bag of candidate positives.

Miech et al., 2020, https://arxiv.org/abs/1912.06430; https://github.com/antoine77340/MIL-NCE_HowTo100M `video_loader.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from vlpipe.stages.clips.captions import Caption
from vlpipe.stages.clips.pairing import NumClips, Pair, Pairing, centres, span_s


@dataclass(frozen=True, kw_only=True)
class MilNce(Pairing):
    """Returns a clip around each caption, or around `num_clips` captions drawn with replacement.

    The clip is the caption's time span, extended on both sides to `min_time_s` (5 in the authors' recipe). clip_s: length of
    a random part of it, in seconds (3.2 is 16 frames at 5 per second, or 32 at 10); a shorter span is kept whole. None: the
    whole span, from which a data loader draws a part.
    candidates: the caption itself, then its neighbours, `num_candidates` contiguous captions in total (fewer if the video
    has fewer), added on the side that keeps the span shorter (ties: right). 5 in the paper, 4 in the README of the
    reference code, 1 in the code.
    Bugs of the reference code, fixed here: start and end are truncated to whole seconds, so both are up to 1 s early; with
    fewer captions than candidates the first one is repeated; a clip may extend past the end of the video; a caption without
    text becomes the word "nan".
    """

    min_time_s: Annotated[float, Field(ge=0)] = 5.0
    num_candidates: Annotated[int, Field(ge=1)] = 5
    clip_s: Annotated[float, Field(gt=0)] | None = None
    num_clips: NumClips | None = None

    NAME: ClassVar[str] = "clips.milnce:MilNce"

    def pairs(
        self, captions: Sequence[Caption], duration_s: float, rng: np.random.Generator
    ) -> Iterator[Pair]:
        for centre in centres(len(captions), self.num_clips, rng):
            start_s, end_s = widen(captions[centre], self.min_time_s, duration_s)
            if self.clip_s is not None and end_s - start_s > self.clip_s:
                start_s = float(rng.uniform(start_s, end_s - self.clip_s))
                end_s = start_s + self.clip_s
            yield Pair(start_s, end_s, centre, centre, nearest(captions, centre, self.num_candidates))


def widen(caption: Caption, min_time_s: float, duration_s: float) -> tuple[float, float]:
    """Returns the caption's (start, end) in seconds, unchanged if it lasts `min_time_s` or more, else extended to that.

    It is extended equally on both sides; what lies outside the video is added on the other side. A shorter video: all of it.
    """
    short_s = min_time_s - (caption.end_s - caption.start_s)
    if short_s <= 0:
        return caption.start_s, caption.end_s
    start_s = max(0.0, min(caption.start_s - short_s / 2, duration_s - min_time_s))
    return start_s, min(start_s + min_time_s, duration_s)


def nearest(captions: Sequence[Caption], centre: int, num: int) -> tuple[int, ...]:
    """Returns the indices of `num` contiguous captions around `centre`, nearest first; fewer if the video has fewer."""
    found, first, last = [centre], centre, centre
    while len(found) < min(num, len(captions)):
        left = first > 0
        if left and last + 1 < len(captions):
            left = span_s(captions, first - 1, last) < span_s(captions, first, last + 1)
        if left:
            first -= 1
        else:
            last += 1
        found.append(first if left else last)
    return tuple(found)
