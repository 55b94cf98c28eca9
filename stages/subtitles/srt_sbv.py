"""Read formats with a line of times and text below it: srt and sbv. (WebVTT: `vtt.py`, which also uses `blocks`.)"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from vlpipe.stages.subtitles.cue import RawCue
from vlpipe.stages.subtitles.text import plain, seconds

ARROW = re.compile(r"[ \t]*([\d-]\S*)[ \t]*-->[ \t]*(\S+)")
SBV_TIMES = re.compile(r"[ \t]*(\d+:\d{1,2}:\d{1,2}\.\d{1,3}),(\d+:\d{1,2}:\d{1,2}\.\d{1,3})[ \t]*")


class Block(NamedTuple):
    """A line of times, and the lines up to the next line of times, including blank ones."""

    before: list[str]  # lines before the first line of times; only the first block has some
    times: str
    lines: list[str]


def blocks(text: str, times: re.Pattern[str]) -> Iterator[Block]:
    """Yield the blocks of a text, which start at the lines that match `times`."""
    before: list[str] = []
    now: Block | None = None
    for line in text.split("\n"):
        if times.match(line):
            if now:
                yield now
            now = Block([] if now else before, line, [])
        else:
            (now.lines if now else before).append(line)
    if now:
        yield now


def span(line: str, times: re.Pattern[str]) -> tuple[float, float] | None:
    """Returns start and end in seconds, or None if one of them is not a time."""
    found = times.match(line)
    start_s, end_s = (seconds(clock) for clock in found.groups()) if found else (None, None)
    return None if start_s is None or end_s is None else (start_s, end_s)


def read_srt(text: str) -> RawCue:
    """Read srt tolerantly: index lines may be missing, texts may have blank lines, `.` equals `,`, milliseconds optional.

    A number right above a line of times is an index, not text. https://en.wikipedia.org/wiki/SubRip
    """
    found = RawCue()
    every = list(blocks(text, ARROW))
    for block, last in zip(every, [False] * (len(every) - 1) + [True], strict=True):
        index = not last and bool(block.lines) and block.lines[-1].strip().isdecimal()
        _add(found, span(block.times, ARROW), block.lines[:-1] if index else block.lines)
    return found


def read_sbv(text: str) -> RawCue:
    """Read YouTube's sbv: `0:00:00.378,0:00:11.378`, with the text below it."""
    found = RawCue()
    for block in blocks(text, SBV_TIMES):
        _add(found, span(block.times, SBV_TIMES), block.lines)
    return found


def _add(found: RawCue, times: tuple[float, float] | None, lines: list[str]) -> None:
    if times is None:
        found.counts["cues_bad_times"] += 1
    else:
        found.add(*times, plain("\n".join(lines)))
