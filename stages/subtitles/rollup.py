"""Roll-up captions without their repetitions: exactly the words that were said, once each, in order.

YouTube's automatic captions show each line up to three times. A word with a time of its own is new. Where there are no word
times, the longest run of words that ends what was shown and begins what is shown now was carried over, if there is no gap
in time. Whole words are compared: runs of characters, the shortest first (MMPT's rule), damage words and leave repeats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from vlpipe.stages.subtitles.cue import Shown

GAP_S = 0.5  # a pause longer than this clears the screen


def is_rolling(shown: Sequence[Shown], gap_s: float = GAP_S) -> bool:
    """Do at least half of the neighbours in time repeat words as roll-up captions do?

    A single word that ends one cue and begins the next ("very", "very good") proves nothing, unless the cues overlap in
    time or it is all that one of them shows.
    """
    near = [(a, b) for a, b in pairwise(shown) if b.start_s <= a.end_s + gap_s]
    repeating = sum(_repeats(a, b) for a, b in near)
    return bool(near) and 2 * repeating >= len(near)


def _repeats(before: Shown, now: Shown) -> bool:
    num = overlap(before.words, now.words)
    whole = num == min(len(before.words), len(now.words))
    return num >= 2 or (num == 1 and (whole or now.start_s < before.end_s))


def merge(shown: Sequence[Shown], gap_s: float = GAP_S) -> list[Shown]:
    """Each with its new words only; those without any are left out. In order of start; no cue outlasts the next one's start.

    Exact when words have times, and without them when each line also stands alone before the next comes (YouTube's
    "settle" cues) or no line repeats the end of the one before.
    """
    found: list[Shown] = []
    before: Shown | None = None
    for now in shown:
        carried: tuple[str, ...] = now.words[: len(now.words) - len(now.spoken)]
        near = before is not None and now.start_s <= before.end_s + gap_s
        num = overlap(before.words, carried) if before is not None and near else 0
        before = now
        if num < len(now.words):
            found.append(replace(now, words=now.words[num:]))
    return [_until(now, after) for now, after in zip(found, [*found[1:], None], strict=True)]


def _until(now: Shown, after: Shown | None) -> Shown:
    """Cut at the next one's start; those that begin together stay as they are."""
    if after is None or not now.start_s < after.start_s < now.end_s:
        return now
    end_s = after.start_s
    return replace(now, end_s=end_s, spoken=tuple((min(a, end_s), min(b, end_s)) for a, b in now.spoken))


def overlap(before: Sequence[str], now: Sequence[str]) -> int:
    """Number of words in the longest run that ends `before` and begins `now`; linear time (Knuth-Morris-Pratt)."""
    if not before or not now:
        return 0
    fallback = [0] * len(now)
    for place in range(1, len(now)):
        num = fallback[place - 1]
        while num and now[place] != now[num]:
            num = fallback[num - 1]
        fallback[place] = num + (now[place] == now[num])
    num = 0
    for word in before[-len(now) :]:
        while num and (num == len(now) or word != now[num]):
            num = fallback[num - 1]
        num += word == now[num]
    return num
