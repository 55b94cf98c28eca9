"""Cues as pairing rules want them: one track, each cue with words and a place in the video, in order of time.

What is broken is repaired where that is safe, else left out and counted: HowTo100M's captions have all of it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SOURCES = ("manual", "unknown", "auto")


@dataclass(frozen=True, slots=True)
class Word:
    start_s: float
    end_s: float
    word: str


@dataclass(frozen=True, slots=True)
class Caption:
    """Words that were shown or said together. 0 <= start_s <= end_s, and within the video if its length is known.

    words: those of the text with times of their own, within the caption's; empty: the source has none, or others.
    """

    start_s: float
    end_s: float
    text: str  # one line, never empty
    words: tuple[Word, ...] = ()


def pick_track(
    cues: Sequence[Mapping[str, Any]], sources: Sequence[str], lang: str
) -> list[Mapping[str, Any]]:
    """The cues of one (source, language): two tracks of a video say the same twice.

    Taken is the first of `sources` that is there, then the language with the most cues (of equals the first by name).
    lang: only languages that begin so ("en" takes en-GB), and cues that do not say theirs; "": any.
    """

    def fits(cue: Mapping[str, Any]) -> bool:
        own = cue["lang"]
        return cue["source"] in sources and (not own or not lang or own.lower().startswith(lang.lower()))

    num = Counter((cue["source"], cue["lang"]) for cue in cues if fits(cue))
    if not num:
        return []
    best = min(num, key=lambda track: (sources.index(track[0]), -num[track], track[1] or ""))
    return [cue for cue in cues if (cue["source"], cue["lang"]) == best]


def clean(cues: Sequence[Mapping[str, Any]], duration_s: float, counts: Counter[str]) -> list[Caption]:
    """Captions in order of (start, end, place in the list); `counts` says how many were left out, and why.

    duration_s: how long the video may be.

    Left out: `no_text`, `bad_times` (missing, not finite, over before 0), `past_end` (they begin after the video).
    Repaired: white space, a start after the end (swapped, as UniVL does), times beyond either end of the video.
    """
    found = []
    for cue in cues:
        text = " ".join((cue["text"] or "").split())
        times = _times(cue["start_s"], cue["end_s"])
        if not text:
            counts["no_text"] += 1
        elif times is None:
            counts["bad_times"] += 1
        elif times[0] >= duration_s:
            counts["past_end"] += 1
        else:
            end_s = min(times[1], duration_s)
            found.append(Caption(times[0], end_s, text, _words(cue["words"] or (), text, times[0], end_s)))
    return sorted(found, key=lambda caption: (caption.start_s, caption.end_s))


def _times(start_s: float | None, end_s: float | None) -> tuple[float, float] | None:
    if start_s is None or end_s is None or not (math.isfinite(start_s) and math.isfinite(end_s)):
        return None
    low, high = sorted((start_s, end_s))
    return (max(low, 0.0), high) if high >= 0 else None


def _words(words: Sequence[Mapping[str, Any]], text: str, low_s: float, high_s: float) -> tuple[Word, ...]:
    """Words with times moved into [low_s, high_s]; none when they are not those of the text, or lack a time."""
    found: list[Word] = []
    for word in words:
        times = _times(word["start_s"], word["end_s"])
        if times is None:
            return ()
        start_s, end_s = (min(max(t, low_s), high_s) for t in times)
        found.extend(Word(start_s, end_s, one) for one in (word["word"] or "").split())
    return tuple(found) if [w.word for w in found] == text.split() else ()
