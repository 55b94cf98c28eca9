"""Finds the lines of times of srt, sbv and WebVTT files, as standards define them and as tools and people write them.

Accepted besides the standards: spaces within a time, other arrows (`->`, `--&gt;`, `→`, `=>`), no arrow between two full
times, full-width signs, `;` or `:` before the milliseconds, an index or a text on the same line.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import NamedTuple

from vlpipe.stages.subtitles.cue import Span
from vlpipe.stages.subtitles.text import seconds

HEAD_CHARS = 200  # only this much of a line is examined, so a long line costs no time
# Same length: full-width signs and other spaces, and characters that are not shown.
ALIKE = str.maketrans(
    "\uff1a\uff0c\uff0e\uff1b\uff1e\uff0d\u00a0\u3000\u200b\u200e\u200f\ufeff", ":,.;>-      "
)
CLOCK = r"(-?\d{1,4}(?:[ \t]*:[ \t]*\d{1,3}){1,3}(?:[ \t]*[.,;'][ \t]*\d{1,9})?)"
FULL = r"(\d{1,4}(?:[ \t]*:[ \t]*\d{1,2}){2}(?:[ \t]*[.,][ \t]*\d{1,3})?)"
ARROW = r"[ \t]*(?:[-\u2010-\u2015\u2212=~][ \t]*){0,5}(?:[>\u2192\u21d2\u27f6\u2794\u279c]|&gt;)[ \t]*"
STAMP = r"(?:(\d{1,4}):)?(\d\d):(\d\d)[.,](\d{3})"
STANDARD = re.compile(rf"{STAMP} *--> *{STAMP}(?![\w:.,])", re.ASCII)
TIMES = re.compile(rf"[ \t]*(?:\d{{1,9}}[ \t]+)?{CLOCK}{ARROW}{CLOCK}")
# sbv; or an arrow without a head, or none
PAIR = re.compile(
    rf"[ \t]*{FULL}(?:[ \t]*(?:[,;]|[-\u2010-\u2015\u2212=~]{{1,5}})[ \t]*|[ \t]+){FULL}[ \t]*$"
)
IS_ARROW = re.compile(r"--+[ \t]*(?:>|&gt;)|[-=]>|-&gt;|\u2192")
CLOCK_LIKE = re.compile(r"\d[ \t]*:[ \t]*\d")
BROKEN_PAIR = re.compile(r"[ \t]*\d[^\s,]{0,30}:[^\s,]{1,30},[^\s,]{1,30}:[^\s,]{1,30}[ \t]*$")
SETTINGS = re.compile(r"[ \t]*([XY][12]|align|position|line|size|vertical|region)[ \t]*:", re.IGNORECASE)


class TimeLine(NamedTuple):
    """A line of times. span: start and end in seconds, None if they cannot be read; text: what follows on the line."""

    span: Span | None
    text: str


def time_line(line: str) -> TimeLine | None:
    """Returns the times of a line, or None if it is not a line of times. Cue settings are not text."""
    if ":" not in line and "\uff1a" not in line:
        return None
    if found := STANDARD.match(line):  # most lines; the rest of this function takes four times as long
        parts = [int(part or 0) for part in found.groups()]
        return TimeLine((_in_s(*parts[:4]), _in_s(*parts[4:])), _text(line[found.end() :]))
    head = line[:HEAD_CHARS].translate(ALIKE)
    if found := PAIR.match(head) or TIMES.match(head):
        start_s, end_s = (_seconds(clock) for clock in found.groups())
        rest = line[found.end() :]
        if start_s is None or end_s is None or rest[:1].isalnum() or rest[:1] in (":", ".", ","):
            return TimeLine(None, "")
        return TimeLine((start_s, end_s), _text(rest))
    if (IS_ARROW.search(head) and CLOCK_LIKE.search(head)) or BROKEN_PAIR.match(head):
        return TimeLine(None, "")
    return None


def _in_s(hours: int, minutes: int, secs: int, ms: int) -> float:
    return (((hours * 60 + minutes) * 60 + secs) * 1000 + ms) / 1000


def _text(rest: str) -> str:
    return "" if not rest or SETTINGS.match(rest) else rest


def _seconds(clock: str) -> float | None:
    text = "".join(clock.split()).replace(";", ".").replace("'", ".")
    sign, text = (-1, text[1:]) if text.startswith("-") else (1, text)
    parts = text.split(":")
    if (
        len(parts) == 4 and len(parts[3]) == 3
    ):  # milliseconds after a colon; two digits would be a frame number
        text = f"{':'.join(parts[:3])}.{parts[3]}"
    found = seconds(text)
    return None if found is None else sign * found


class Block(NamedTuple):
    """A cue: its times, and the lines below them up to the next line of times.

    span: start and end in seconds, None if they cannot be read. lines: first the text on the line of times, if any.
    """

    span: Span | None
    lines: list[str]


def blocks(text: str) -> tuple[list[str], list[Block]]:
    """Returns the lines before the first line of times, and the blocks. Linear time."""
    before: list[str] = []
    found: list[Block] = []
    for line in text.split("\n"):
        times = time_line(line)
        if times is not None:
            found.append(Block(times.span, [times.text] if times.text.strip() else []))
        else:
            (found[-1].lines if found else before).append(line)
    return before, found


def index_place(lines: list[str]) -> int | None:
    """Returns the position in `lines` of the last line that is not blank, or None if that line is no number."""
    place = next((n for n in range(len(lines) - 1, -1, -1) if lines[n].strip()), None)
    return place if place is not None and number_in(lines[place]) is not None else None


def number_in(line: str) -> int | None:
    """Returns the number that a line consists of (`7`, `7.`), at most 9 digits, or None."""
    text = line[:HEAD_CHARS].translate(ALIKE).strip().rstrip(".:")
    return int(text) if text.isdecimal() and len(text) <= 9 and len(line) < HEAD_CHARS else None


def has_indices(before: list[str], every: list[Block]) -> bool:
    """Returns whether the cues of a file have index numbers. before, every: the result of `blocks`.

    They have if the last line above the first cue is a number; if the line right above at least half of the other cues is
    one, below the text of the cue before; or if the last lines above most cues, ignoring blank ones, are consecutive
    numbers.
    """
    if index_place(before) is not None:
        return True
    ends = [
        (block.lines, index_place(block.lines) or 0) for block in every[:-1]
    ]  # at place 0, a number is text
    close = sum(0 < place == len(lines) - 1 for lines, place in ends)
    numbers = [number_in(lines[place]) if place else None for lines, place in ends]
    steps = sum(a is not None and b == a + 1 for a, b in pairwise(numbers))
    return bool(ends) and (2 * close >= len(ends) or (len(ends) > 1 and 2 * (steps + 1) > len(ends)))
