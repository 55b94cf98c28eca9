"""Computes the times of words from a text with time stamps between words."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from vlpipe.stages.subtitles.cue import INVISIBLE, Span


class Piece(NamedTuple):
    """Text that starts at `at_s` seconds. None: no time of its own, it starts with the previous piece, or with the cue."""

    at_s: float | None
    text: str


def timed_words(pieces: Sequence[Piece], cue: Span) -> tuple[list[str], list[Span]]:
    """Returns (words, start and end of each in seconds). A word ends when the next later word starts, or with the cue.

    The words of one piece have the same times. The list of times is empty if starts decrease or lie outside the cue.
    """
    words: list[str] = []
    starts: list[float] = []
    at_s, joined = cue[0], False
    for piece in pieces:
        at_s = at_s if piece.at_s is None else piece.at_s
        text = piece.text.translate(INVISIBLE)
        new = text.split()
        if joined and new and not text[0].isspace():  # a stamp within a word
            words[-1] += new.pop(0)
        words += new
        starts += [at_s] * len(new)
        joined = bool(words) and not text[-1:].isspace() if text else joined
    if not words or any(b < a for a, b in pairwise([cue[0], *starts, cue[1]])):
        return words, []
    ends, end_s = [0.0] * len(starts), cue[1]
    for n in range(len(starts) - 1, -1, -1):
        if n + 1 < len(starts) and starts[n + 1] > starts[n]:
            end_s = starts[n + 1]
        ends[n] = end_s
    return words, list(zip(starts, ends, strict=True))
