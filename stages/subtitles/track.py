"""Turns the content of a subtitle file into cues: sorts by time, merges roll-up captions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.subtitles.cue import Cue, RawCue, Shown, Source, Word
from vlpipe.stages.subtitles.rollup import is_rolling, merge

Merge = Literal["auto", "always", "never"]


@dataclass(frozen=True, slots=True)
class Track:
    """All cues of a video in one language. counts: dropped or repaired cues, by reason."""

    cues: tuple[Cue, ...]
    counts: Mapping[str, int]


def track(
    found: RawCue, name: str, *, source: Source = "unknown", lang: str | None = None, rollup: Merge = "auto"
) -> Track:
    """Returns the cues in order of time. Raises RowFault (no_cues) if there is no cue with text.

    source, lang: defaults; signs of speech recognition in the file, and a language it states, take precedence.
    rollup: whether to merge repeated words; auto: only if `is_rolling`.
    """
    counts = found.counts
    if not found.shown:
        why = ", ".join(f"{n} {code}" for code, n in sorted(counts.items()) if n)
        raise RowFault("no_cues", f"{name} has no cue with text" + (f"; {why}" if why else ""))
    counts["cues_out_of_order"] += sum(b.start_s < a.start_s for a, b in pairwise(found.shown))
    shown = sorted(found.shown, key=lambda one: one.start_s)
    rolling = rollup == "always" or (rollup == "auto" and is_rolling(shown))
    merged = merge(shown) if rolling else shown
    counts["cues_carried_over"] += len(shown) - len(merged)
    counts["words_carried_over"] += _num_words(shown) - _num_words(merged)
    spoken: Source = "auto" if found.auto else source
    cues = tuple(_cue(one, spoken, found.lang or lang) for one in merged)
    return Track(cues, {code: n for code, n in sorted(counts.items()) if n})


def _num_words(shown: list[Shown]) -> int:
    return sum(len(one.words) for one in shown)


def _cue(one: Shown, source: Source, lang: str | None) -> Cue:
    words = None
    if one.spoken:  # words without their own times last from the start of the cue to the first spoken word
        head = [(one.start_s, one.spoken[0][0])] * (len(one.words) - len(one.spoken))
        words = tuple(Word(a, b, word) for (a, b), word in zip([*head, *one.spoken], one.words, strict=True))
    return Cue(one.start_s, one.end_s, " ".join(one.words), words, source, lang)
