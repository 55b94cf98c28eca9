"""Reads formats with a line of times and text below it: srt and sbv, also mixed in one file."""

from __future__ import annotations

import re

from vlpipe.stages.subtitles.cue import RawCue
from vlpipe.stages.subtitles.text import plain
from vlpipe.stages.subtitles.time_lines import Block, blocks, has_indices, index_place, number_in

# The line below an index number, if its times are written in an unknown way.
LIKE_TIMES = re.compile(r"\W{0,9}\d{1,9}[ \t]*[:;.h][ \t]*\d")


def read_timed(text: str) -> RawCue:
    """Reads srt or sbv tolerantly: the number (index) above a cue's times may be missing, blank lines may follow it, and
    texts may have blank lines.

    Counts cues_bad_times (an unreadable line of times; the text below it is dropped), and blocks_no_time (text before the
    first line of times; an index at the end of a truncated file). https://en.wikipedia.org/wiki/SubRip
    """
    found = RawCue()
    before, every = blocks(text)
    indexed = has_indices(before, every)
    place = index_place(before) if indexed else None
    index = None if place is None else number_in(before[place])
    found.counts["blocks_no_time"] += _num_blocks(before if place is None else before[:place])
    for number, block in enumerate(every):
        last = number == len(every) - 1
        lines, next_index = _without_index(block, last, index) if indexed else (block.lines, None)
        if last and next_index is not None:
            found.counts["blocks_no_time"] += 1
        lines = _without_unread(found, lines, index) if indexed else lines
        if block.span is None:
            found.counts["cues_bad_times"] += 1
        else:
            found.add(*block.span, plain("\n".join(lines)))
        index = next_index
    return found


def _num_blocks(lines: list[str]) -> int:
    return sum(bool(line.strip()) and (n == 0 or not lines[n - 1].strip()) for n, line in enumerate(lines))


def _without_index(block: Block, last: bool, index: int | None) -> tuple[list[str], int | None]:
    """Returns (the block's lines without the index of the next cue, that index); (all lines, None) if there is none.

    index: this cue's own. last: whether the block is the file's last one; a number at its end is then an index, of a cue
    that was cut off, only if it is below a blank line and is `index` + 1.
    """
    lines, place = block.lines, index_place(block.lines)
    if place is None:
        return lines, None
    number = number_in(lines[place])
    if last:
        apart = place > 0 and not lines[place - 1].strip()
        return (
            (lines[:place], number) if apart and index is not None and number == index + 1 else (lines, None)
        )
    if place == 0 and len(lines) > 1:  # right below the times, and apart from the next ones: text
        return lines, None
    return lines[:place], number


def _without_unread(found: RawCue, lines: list[str], index: int | None) -> list[str]:
    """Returns the lines up to a cue whose line of times was not recognised, or all lines if there is none.

    Such a cue starts with a blank line, the number `index` + 1, and a line that looks like times. It is counted in
    cues_bad_times. index: this cue's own; without it, all lines are returned.
    """
    end = len(lines)
    for n in range(1, len(lines)):
        if index is None or lines[n - 1].strip() or number_in(lines[n]) != index + 1:
            continue
        if LIKE_TIMES.match(next((line for line in lines[n + 1 : n + 4] if line.strip()), "")):
            found.counts["cues_bad_times"] += 1
            end, index = min(end, n), index + 1
    return lines[:end]
