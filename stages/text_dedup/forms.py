"""Forms in which texts are compared: normal form, character shingles, word n-grams."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

from vlpipe.stages.common.texts import normalized

SHINGLE_CHARS = 5


class _Table(dict[int, str]):
    """A table for `str.translate`, filled on demand."""

    def __init__(self, rule: Callable[[str, str], str]) -> None:
        self._rule = rule  # (character, its Unicode category) -> replacement

    def __missing__(self, code: int) -> str:
        found = self._rule(chr(code), unicodedata.category(chr(code)))
        self[code] = found
        return found


_VISIBLE = _Table(lambda char, category: "" if category == "Cf" else char)
_WORDS = _Table(lambda char, category: char if category[0] in "LMN" else " ")


def normal_form(text: str) -> str:
    """Returns the words of the text (NFKC, casefolded), joined by single spaces.

    Words consist of letters, marks and numbers; all other characters separate them, except format characters, which are
    removed. A text of symbols only (`:-)`, an emoji) keeps its symbols, else all such texts would be equal.
    """
    folded = normalized("NFKC", normalized("NFKC", text).casefold())
    visible = folded.translate(_VISIBLE)
    return " ".join(visible.translate(_WORDS).split()) or " ".join(visible.split())


def shingles(form: str) -> frozenset[str]:
    """Returns all character 5-grams of a normal form; a shorter form is its own shingle.

    5 is the usual size for short texts (Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, 3.2.2).
    """
    return frozenset(form[i : i + SHINGLE_CHARS] for i in range(max(1, len(form) - SHINGLE_CHARS + 1)))


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """Returns the Jaccard similarity of two sets, 0 to 1; at least one must be non-empty."""
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)


def ngrams(words: list[str], n: int) -> list[str]:
    """Returns all word `n`-grams, joined by spaces; none if there are fewer than `n` words."""
    return [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]
