"""Prepares cues for pairing: selects one track, and returns valid cues sorted by time.

Broken cues are repaired if that is safe, else dropped and counted; HowTo100M's captions contain every case.
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
    """A valid cue; times in seconds, 0 <= start_s <= end_s, within the video if its duration is known.

    words: the words of the text with their own times, within the caption's; empty if the source has no times for them, or
    if its words are not those of the text.
    """

    start_s: float
    end_s: float
    text: str  # one line, never empty
    words: tuple[Word, ...] = ()


def pick_track(
    cues: Sequence[Mapping[str, Any]], sources: Sequence[str], lang: str
) -> list[Mapping[str, Any]]:
    """Returns the cues of one track, a (source, language) pair; none if no cue has an accepted source and language.

    Other tracks of the video repeat the same speech. The first source of `sources` that has such cues is chosen, then the
    language with the most cues (ties: by name).
    lang: accept this language with any region ("en" matches en-GB, but "fi" not "fil"), and cues without a language; "":
    any.
    """
    start = f"{lang.lower().replace('_', '-')}-"

    def fits(cue: Mapping[str, Any]) -> bool:
        own = cue["lang"]
        speaks = not own or not lang or f"{own.lower().replace('_', '-')}-".startswith(start)
        return cue["source"] in sources and speaks

    num = Counter((cue["source"], cue["lang"]) for cue in cues if fits(cue))
    if not num:
        return []
    best = min(num, key=lambda track: (sources.index(track[0]), -num[track], track[1] or ""))
    return [cue for cue in cues if (cue["source"], cue["lang"]) == best]


def clean(cues: Sequence[Mapping[str, Any]], duration_s: float, counts: Counter[str]) -> list[Caption]:
    """Returns captions sorted by (start, end, position); `counts` is incremented for dropped cues, by reason.

    duration_s: of the video; inf, or another upper bound, if it is unknown.

    Dropped: `no_text`, `bad_times` (missing, not finite, both before 0), `past_end` (start at or after the video's end).
    Repaired: whitespace, a start after the end (swapped, as in UniVL), times beyond either end of the video (clamped).
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
    """Returns words with times clamped to [low_s, high_s]; none if they differ from the text or lack a time."""
    found: list[Word] = []
    for word in words:
        times = _times(word["start_s"], word["end_s"])
        if times is None:
            return ()
        start_s, end_s = (min(max(t, low_s), high_s) for t in times)
        found.extend(Word(start_s, end_s, one) for one in (word["word"] or "").split())
    return tuple(found) if [w.word for w in found] == text.split() else ()
