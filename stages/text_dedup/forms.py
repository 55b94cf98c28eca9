"""A text as it is compared: its normal form, its words, its shingles."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

SHINGLE_CHARS = 5


class _Table(dict[int, str]):
    """For `str.translate`: filled as characters are met."""

    def __init__(self, rule: Callable[[str, str], str]) -> None:
        self._rule = rule  # (character, its Unicode category) -> what it becomes

    def __missing__(self, code: int) -> str:
        found = self._rule(chr(code), unicodedata.category(chr(code)))
        self[code] = found
        return found


_VISIBLE = _Table(lambda char, category: "" if category == "Cf" else char)
_WORDS = _Table(lambda char, category: char if category[0] in "LMN" else " ")


def normal_form(text: str) -> str:
    """NFKC, casefold; what is no letter, mark or digit becomes a space, one between words; invisible marks go.

    A text that is all symbols (`:-)`, an emoji) keeps them: else all such texts would be equal.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    visible = folded.translate(_VISIBLE)
    return " ".join(visible.translate(_WORDS).split()) or " ".join(visible.split())


def shingles(form: str) -> frozenset[str]:
    """All runs of 5 characters of a normal form; a shorter one is its own shingle.

    5 is the usual choice for short texts (Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, 3.2.2).
    """
    return frozenset(form[i : i + SHINGLE_CHARS] for i in range(max(1, len(form) - SHINGLE_CHARS + 1)))


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """Shared part of two sets that are not both empty."""
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)


def ngrams(words: list[str], n: int) -> list[str]:
    """All runs of `n` words, each joined by spaces; none when there are fewer."""
    return [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]
