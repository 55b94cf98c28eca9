"""Removes the repetitions of roll-up captions: each spoken word is kept once, in order.

YouTube's automatic captions show each line up to three times. A word with its own time is new. Without word times, the
longest run of words that is both the end of the previous text and the start of the current one counts as carried over, if
there is no gap in time. Whole words are compared: matching the shortest run of characters (as MMPT does) cuts words and
leaves repetitions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from vlpipe.stages.subtitles.cue import Shown

GAP_S = 0.5  # after a longer pause, no words are carried over
UNREADABLE_S = 0.05  # a text that is shown for so short a time was not meant to be read


def is_rolling(shown: Sequence[Shown]) -> bool:
    """Returns whether, as in roll-up captions, at least 3/4 of the texts start with the last words of the text before them.

    Only texts at most GAP_S after the one before count; if none does, the result is False. A text that is shown again
    unchanged counts as new, since words may be said twice, unless it is shown too shortly to be read (YouTube: 10 ms). A
    single common word at the end of one text and the start of the next ("very", "very good") does not count either way,
    unless the two overlap in time or it is the whole text of one of them.
    """
    near = (_carries(a, b) for a, b in pairwise(shown) if b.start_s <= a.end_s + GAP_S)
    known = [carries for carries in near if carries is not None]
    return bool(known) and 4 * sum(known) >= 3 * len(known)


def _carries(before: Shown, now: Shown) -> bool | None:
    """Returns whether `now` starts with the last words of `before`, by the rule of `is_rolling`; None: does not count."""
    if before.words == now.words:
        return now.end_s - now.start_s <= UNREADABLE_S
    num = overlap(before.words, now.words)
    whole = num == min(len(before.words), len(now.words))
    return None if num == 1 and not whole and now.start_s >= before.end_s else num > 0


def merge(shown: Sequence[Shown]) -> list[Shown]:
    """Returns each text with its new words only, in order of start; texts without new words are dropped.

    shown: in order of start. Each text ends at the latest when the next one starts, unless both start together. The result
    is exact if words have times, if each line is also shown alone before the next one (as YouTube does), or if no line
    repeats the end of the previous one.
    """
    found: list[Shown] = []
    before: Shown | None = None
    for now in shown:
        carried: tuple[str, ...] = now.words[: len(now.words) - len(now.spoken)]
        near = before is not None and now.start_s <= before.end_s + GAP_S
        num = overlap(before.words, carried) if before is not None and near else 0
        before = now
        if num < len(now.words):
            found.append(replace(now, words=now.words[num:]))
    return [_until(now, after) for now, after in zip(found, [*found[1:], None], strict=True)]


def _until(now: Shown, after: Shown | None) -> Shown:
    """Returns `now`, cut at the start of `after`; unchanged if that is None or both start together."""
    if after is None or not now.start_s < after.start_s < now.end_s:
        return now
    end_s = after.start_s
    return replace(now, end_s=end_s, spoken=tuple((min(a, end_s), min(b, end_s)) for a, b in now.spoken))


def overlap(before: Sequence[str], now: Sequence[str]) -> int:
    """Returns the length in words of the longest suffix of `before` that is a prefix of `now`; linear time
    (Knuth-Morris-Pratt)."""
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
