"""Read transcripts in JSON: lists of timed texts (youtube-transcript-api), segments of Whisper and WhisperX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlpipe.stages.subtitles.cue import RawCue, Span, plain_words, utf8
from vlpipe.stages.subtitles.youtube_formats import number


def read_list(items: Sequence[Any]) -> RawCue:
    """Read [{text, start, duration}], or `end` instead of `duration`, in seconds."""
    found = RawCue()
    for one in items:
        _add(found, one if isinstance(one, Mapping) else {})
    return found


def read_whisper(content: Mapping[str, Any]) -> RawCue:
    """Read {segments: [{start, end, text, words: [{word, start, end}]}], language}, in seconds.

    WhisperX gives no times for words it cannot align (numbers): they get the time between their neighbours.
    https://github.com/openai/whisper, https://github.com/m-bain/whisperX
    """
    language = content.get("language")
    found = RawCue(lang=utf8(language) if isinstance(language, str) else None, auto=True)
    for one in content["segments"]:
        _add(found, one if isinstance(one, Mapping) else {})
    return found


def _add(found: RawCue, one: Mapping[str, Any]) -> None:
    start, end, length = (number(one.get(key)) for key in ("start", "end", "duration"))
    if end is None and start is not None and length is not None:
        end = start + length
    if start is None or end is None:
        found.counts["cues_bad_times"] += 1
        return
    text = one["text"] if isinstance(one.get("text"), str) else ""
    listed = one["words"] if isinstance(one.get("words"), list) else []
    words, spoken = _words([w for w in listed if isinstance(w, Mapping)], (start, end))
    if plain_words(text) == words and spoken:
        found.add_words(start, end, words, spoken)
    else:  # no word times, or times of other words than the text
        found.counts["cues_bad_word_times"] += bool(listed)
        found.add(start, end, text)


def _words(listed: Sequence[Mapping[str, Any]], cue: Span) -> tuple[list[str], list[Span]]:
    """Returns the words and their times; no times if they run backwards or exceed the segment by more than a second."""
    words = ["".join(str(one.get("word") or "").split()) for one in listed]
    starts, ends = ([number(one.get(key)) for one in listed] for key in ("start", "end"))
    known = [cue[1]] * (len(starts) + 1)  # the next start that is given
    for n, start in reversed(list(enumerate(starts))):
        known[n] = known[n + 1] if start is None else start
    spoken: list[Span] = []
    last = cue[0]
    for start, end, after in zip(starts, ends, known, strict=False):
        a = last if start is None else start
        b = (after if start is None else a) if end is None else end
        if not (last - 1 <= a <= b <= cue[1] + 1):
            return words, []
        last = min(max(b, cue[0]), cue[1])
        spoken.append((min(max(a, cue[0]), last), last))
    return words, spoken
