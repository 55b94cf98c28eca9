"""Data classes of subtitles. Readers return a `RawCue`: the texts on screen (`Shown`); `track.py` turns these into cues.

Texts are words separated by single spaces: line breaks are layout and are removed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Source = Literal["auto", "manual", "unknown"]
Span = tuple[float, float]  # start and end in seconds


@dataclass(frozen=True, slots=True)
class Word:
    """A word with its time in seconds."""

    start_s: float
    end_s: float
    word: str


@dataclass(frozen=True, slots=True)
class Cue:
    """One subtitle; has the fields of `CUE` in `stages.video.rows`. `end_s` >= `start_s`, both in seconds."""

    start_s: float
    end_s: float
    text: str
    words: tuple[Word, ...] | None = None  # None: the source has no word times
    source: Source = "unknown"
    lang: str | None = None

    def row(self) -> dict[str, Any]:
        """Returns the cue as a value of `CUE`."""
        words = (
            None
            if self.words is None
            else [{"start_s": w.start_s, "end_s": w.end_s, "word": w.word} for w in self.words]
        )
        return {
            "start_s": self.start_s,
            "end_s": self.end_s,
            "text": self.text,
            "words": words,
            "source": self.source,
            "lang": self.lang,
        }


@dataclass(frozen=True, slots=True)
class Shown:
    """The text on screen during one time span.

    In roll-up captions, most of it was already on screen before; these repeated words are called carried over.
    """

    start_s: float
    end_s: float
    words: tuple[str, ...]
    spoken: tuple[Span, ...] = ()  # times of the last len(spoken) words, which are new and not carried over


@dataclass
class RawCue:
    """The content of a subtitle file, as collected by a reader.

    counts: dropped or repaired cues, by reason; every dropped cue is counted. auto: the file shows signs of speech
    recognition (word times, confidences).
    """

    shown: list[Shown] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    lang: str | None = None
    auto: bool = False

    def add(self, start_s: float, end_s: float, text: str) -> None:
        """Adds a cue without word times; counts as `add_words` does."""
        self.add_words(start_s, end_s, plain_words(text))

    def add_words(
        self, start_s: float, end_s: float, words: Sequence[str], spoken: Sequence[Span] = ()
    ) -> None:
        """Adds a cue; times in seconds. spoken: (start, end) of the last len(spoken) words, as in `Shown`.

        Counts cues_no_text and cues_bad_times (dropped), cues_below_zero (cut at 0), cues_no_duration (kept),
        cues_bad_unicode (repaired).
        """
        if not words:
            self.counts["cues_no_text"] += 1
        elif not (math.isfinite(start_s) and math.isfinite(end_s) and max(start_s, 0) <= end_s):
            self.counts["cues_bad_times"] += 1
        else:
            self.counts["cues_below_zero"] += start_s < 0
            self.counts["cues_no_duration"] += end_s == max(start_s, 0)
            clean = tuple(utf8(word) for word in words)
            self.counts["cues_bad_unicode"] += clean != tuple(words)
            times = tuple((max(a, 0.0), max(b, 0.0)) for a, b in spoken)
            self.shown.append(Shown(max(start_s, 0.0), end_s, clean, times))


def utf8(text: str) -> str:
    """Replaces unpaired surrogates, which JSON may contain but UTF-8 cannot encode, by question marks."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


INVISIBLE = str.maketrans("", "", "\u200b\ufeff\x00")  # zero width space, byte order mark, NUL


def plain_words(text: str) -> list[str]:
    """Returns the words of a text, without invisible characters."""
    return text.translate(INVISIBLE).split()
