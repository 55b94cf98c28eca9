"""Digits and names of a caption that the image's own texts do not have: what captioners make up most easily."""

from __future__ import annotations

import re
from collections.abc import Iterable

NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")
SENTENCE_END = re.compile(r"[.!?:;]\W*$|[\"\u201c(\u2018]$")
NO_NAMES = frozenset({"I", "I'm", "I'd", "I've", "I'll"})
MAX_CAPITAL_SHARE = 0.5  # of words; above, capitals say nothing: a title


def new_numbers(caption: str, known: Iterable[str]) -> int:
    """Returns how many different numbers of a caption are in none of the texts. A number counts as written, `1,200`."""
    mine = set(NUMBER.findall(caption))
    return len(mine - {n for text in known for n in NUMBER.findall(text)}) if mine else 0


def names_of(text: str) -> set[str] | None:
    """Returns the words that are written as names, in lower case: with a capital, and not at the start of a sentence.

    Words in capitals alone are none (TV, STOP). None if most words have a capital: it is a title, or another language.
    """
    words, names, capitals = 0, set(), 0
    for found in WORD.finditer(text):
        word = found[0]
        words += 1
        if not word[0].isupper():
            continue
        capitals += 1
        before = text[: found.start()].rstrip()[-2:]
        if before and not SENTENCE_END.search(before) and not word.isupper() and word not in NO_NAMES:
            names.add(word.casefold())
    if words > 3 and capitals > MAX_CAPITAL_SHARE * words:
        return None
    return names


def new_names(caption: str, known: Iterable[str]) -> int | None:
    """Returns how many different names of a caption are words of none of the texts, whatever their case; None: not known."""
    mine = names_of(caption)
    if not mine:
        return 0 if mine is not None else None
    return len(mine - {word.casefold() for text in known for word in WORD.findall(text)})
