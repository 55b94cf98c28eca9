"""A text as it is compared: its normal form, its words, its shingles."""

from __future__ import annotations

import unicodedata

SHINGLE_CHARS = 5


class _Spaces(dict[int, str | int | None]):
    """For `str.translate`: what is no letter, mark or digit becomes a space; invisible marks (Cf) go."""

    def __missing__(self, code: int) -> str | int | None:
        category = unicodedata.category(chr(code))
        found: str | int | None = code if category[0] in "LMN" else None if category == "Cf" else " "
        self[code] = found
        return found


_SPACES = _Spaces()


def normal_form(text: str) -> str:
    """NFKC, casefold; punctuation, symbols and any white space become one space between words.

    A text that is all symbols (`:-)`, an emoji) keeps them: else all such texts would be equal.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.translate(_SPACES).split()) or " ".join(folded.split())


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
