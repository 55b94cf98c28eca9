"""Reads transcripts in JSON: lists of timed texts (youtube-transcript-api), and what Whisper, WhisperX, whisper.cpp and
transformers' speech recognition write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlpipe.stages.subtitles.cue import RawCue, Span, plain_words, utf8
from vlpipe.stages.subtitles.text import seconds
from vlpipe.stages.subtitles.word_times import Piece, timed_words
from vlpipe.stages.subtitles.youtube_formats import number


def read_list(items: Sequence[Any]) -> RawCue:
    """Reads [{text, start, duration}], or `end` instead of `duration`, in seconds."""
    found = RawCue()
    for one in items:
        _add(found, one if isinstance(one, Mapping) else {})
    return found


def read_whisper(content: Mapping[str, Any]) -> RawCue:
    """Reads {segments: [{start, end, text, words: [{word, start, end}]}], language}, in seconds.

    WhisperX gives no times for words it cannot align (numbers): they get the time between their neighbours.
    https://github.com/openai/whisper, https://github.com/m-bain/whisperX
    """
    language = content.get("language")
    found = RawCue(lang=utf8(language) if isinstance(language, str) else None, auto=True)
    for one in content["segments"]:
        _add(found, one if isinstance(one, Mapping) else {})
    return found


def read_whisper_cpp(content: Mapping[str, Any]) -> RawCue:
    """Reads {result: {language}, transcription: [{offsets: {from, to}, text, tokens}]}, in ms; tokens are parts of words.

    https://github.com/ggml-org/whisper.cpp
    """
    result = content.get("result")
    language = result.get("language") if isinstance(result, Mapping) else None
    found = RawCue(lang=utf8(language) if isinstance(language, str) else None, auto=True)
    for one in content["transcription"]:
        one = one if isinstance(one, Mapping) else {}
        cue, text = _offsets(one), one["text"] if isinstance(one.get("text"), str) else ""
        if cue is None:
            found.counts["cues_bad_times"] += 1
            continue
        pieces = []
        for token in one["tokens"] if isinstance(one.get("tokens"), list) else []:
            said = token.get("text") if isinstance(token, Mapping) else None
            if isinstance(said, str) and not (
                said.startswith("[_") and said.endswith("]")
            ):  # [_BEG_], [_TT_150]
                at = _offsets(token)
                pieces.append(Piece(at[0] if at else None, said))
        words, spoken = timed_words(pieces, cue)
        if spoken and words == plain_words(text):
            found.add_words(*cue, words, spoken)
        else:
            found.counts["cues_bad_word_times"] += bool(pieces)
            found.add(*cue, text)
    return found


def _offsets(one: Mapping[str, Any]) -> Span | None:
    """Returns start and end in seconds, from ms or, if these are missing, from times such as 00:00:01,500."""
    offsets, stamps = one.get("offsets"), one.get("timestamps")
    if isinstance(offsets, Mapping):
        start, end = (number(offsets.get(key)) for key in ("from", "to"))
        return None if start is None or end is None else (start / 1000, end / 1000)
    if isinstance(stamps, Mapping):
        begin_s, end_s = (seconds(str(stamps.get(key))) for key in ("from", "to"))
        return None if begin_s is None or end_s is None else (begin_s, end_s)
    return None


def read_chunks(chunks: Sequence[Any]) -> RawCue:
    """Reads `chunks` of {timestamp: [start, end], text} of transformers' pipeline, in seconds.

    A chunk without an end (speech that goes on at the end of the audio) lasts until the next one starts; the last one has
    no duration. https://huggingface.co/docs/transformers
    """
    found = RawCue(auto=True)
    for one, after in zip(chunks, [*chunks[1:], None][: len(chunks)], strict=True):
        one = one if isinstance(one, Mapping) else {}
        start, end = _timestamp(one)
        if end is None and start is not None:
            next_start = _timestamp(after)[0] if isinstance(after, Mapping) else None
            end = start if next_start is None else next_start
        _add(found, {"text": one.get("text"), "start": start, "end": end})
    return found


def _timestamp(one: Mapping[str, Any]) -> tuple[float | None, float | None]:
    pair = one.get("timestamp")
    return (number(pair[0]), number(pair[1])) if isinstance(pair, list) and len(pair) == 2 else (None, None)


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
    """Returns (words, start and end of each in seconds), with times cut to `cue`.

    No times are returned if a word ends before it starts, or starts more than a second before the previous one ends, or
    is more than a second outside `cue`. A word without times gets those between its neighbours.
    """
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
