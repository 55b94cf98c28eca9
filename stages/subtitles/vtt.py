"""Reads WebVTT, by the standard and as written by YouTube, with a time for each word. https://www.w3.org/TR/webvtt1/

Only an empty line ends a cue: YouTube's cues have lines of one space. Cue settings, styles and regions are ignored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import groupby

from vlpipe.stages.subtitles.cue import RawCue, Span
from vlpipe.stages.subtitles.text import plain, seconds
from vlpipe.stages.subtitles.time_lines import blocks, has_indices, number_in
from vlpipe.stages.subtitles.word_times import Piece, timed_words

STAMP = re.compile(r"<((?:\d+:)?\d{1,2}:\d{1,2}[.,]\d{1,3})>")
HEADER = re.compile(r"(Language|Kind):[ \t]*(\S+)", re.IGNORECASE)
NOT_CUES = ("NOTE", "STYLE", "REGION", "WEBVTT")
NOT_SPEECH = frozenset({"chapters", "metadata"})
THUMBNAIL = re.compile(r"\S{1,500}#xywh=[\d,]{1,60}")


def read_vtt(text: str) -> RawCue:
    """Reads WebVTT; counts blocks_no_time: text without a line of times, which is ignored, as in the standard.

    Counts cues_not_speech: cues of chapters and metadata (`Kind:`, JSON, or parts of a picture), which are dropped.
    """
    found = RawCue()
    before, every = blocks(text)
    kind = _header(found, before)
    indexed = has_indices(before, every)
    for number, block in enumerate(every):
        last = number == len(every) - 1
        end = block.lines.index("") if "" in block.lines else len(block.lines)
        lines = block.lines[:end]
        if end == len(block.lines) and indexed and not last and lines and number_in(lines[-1]) is not None:
            lines = lines[:-1]  # the next cue's index, without an empty line before it
        _count_strays(found, block.lines[end:], at_end=last)
        if block.span is None:
            found.counts["cues_bad_times"] += 1
        elif kind in NOT_SPEECH or _is_metadata(lines):
            found.counts["cues_not_speech"] += 1
        else:
            _add(found, block.span, lines)
    found.auto = any(one.spoken for one in found.shown)
    return found


def _is_metadata(lines: Sequence[str]) -> bool:
    text = "\n".join(lines).strip()
    if THUMBNAIL.fullmatch(text):
        return True
    if not (text.startswith("{") and text.endswith("}")) or len(text) < 2:
        return False
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _header(found: RawCue, lines: Sequence[str]) -> str:
    """Returns the kind that the header states, or ""."""
    end, kind = lines.index("") if "" in lines else len(lines), ""
    for line in lines[:end]:
        if named := HEADER.match(line):
            if named[1].lower() == "kind":
                kind = named[2].lower()
            else:
                found.lang = named[2]
    _count_strays(found, lines[end:])
    return kind


def _count_strays(found: RawCue, lines: Sequence[str], *, at_end: bool = False) -> None:
    """Counts the blocks of lines between two cues in blocks_no_time, except comments, styles and regions.

    lines: from the empty line that ends a cue or the header, up to the next line of times. The last block is not counted
    if it is the identifier of the next cue: a number, or directly above that line. at_end: no line of times follows.
    """
    strays = [
        " ".join(group).strip() for empty, group in groupby(lines, lambda line: line == "") if not empty
    ]
    if strays and not at_end and (lines[-1] != "" or number_in(strays[-1]) is not None):
        strays.pop()
    found.counts["blocks_no_time"] += sum(bool(one) and not one.startswith(NOT_CUES) for one in strays)


def _add(found: RawCue, times: Span, lines: Sequence[str]) -> None:
    """Adds a cue. The first line with word times, and all lines below it, are new; the lines above were carried over.

    If these times are before the start of the cue, the words are added without times. Word times that decrease or end
    after the cue are dropped and counted (cues_bad_word_times).
    """
    start_s, _ = times
    first = next((n for n, line in enumerate(lines) if _stamps(line)), len(lines))
    if first < len(lines) and min(_stamps(lines[first])) < start_s:
        first = len(lines)  # these times belong to a line that was carried over
    head = [word for line in lines[:first] for word in plain(STAMP.sub("", line)).split()]
    pieces = [piece for line in lines[first:] for piece in _pieces(line)]
    words, spoken = timed_words(pieces, times)
    if pieces and not spoken:
        found.counts["cues_bad_word_times"] += 1
    found.add_words(*times, [*head, *words], spoken)


def _stamps(line: str) -> list[float]:
    return [s for stamp in STAMP.findall(line) if (s := seconds(stamp)) is not None]


def _pieces(line: str) -> list[Piece]:
    """Splits a line at its time stamps; the text before the first one has no time of its own."""
    parts = STAMP.split(line)
    times = [None, *(seconds(stamp) for stamp in parts[1::2])]
    return [
        Piece(at_s, plain(text)) for at_s, text in zip(times, [*parts[:-2:2], parts[-1] + "\n"], strict=True)
    ]
