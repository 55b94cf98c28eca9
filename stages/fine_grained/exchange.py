"""Exchanges a word of a text for one that says another value of the same attribute, so that the text becomes wrong in it.

As FOIL (https://arxiv.org/abs/1705.01359) does for objects, and the tests REPLACE of SugarCrepe (https://arxiv.org/abs/2306.14610)
for attributes and objects.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

Attributes = Mapping[
    str, Mapping[str, Sequence[str]]
]  # attribute -> value -> the words that say it; [] for the value itself
VOWELS = "aeiou"


class Exchange:
    """Attributes, their values, and the words that say them. Case does not matter; words may have several parts."""

    def __init__(self, attributes: Attributes) -> None:
        """Raises ValueError for an attribute with less than two values, and for a word that says two of them."""
        self._words = {
            attribute: {value: [word.lower() for word in words or [value]] for value, words in values.items()}
            for attribute, values in attributes.items()
        }
        self._meaning: dict[str, tuple[str, str]] = {}
        for attribute, values in self._words.items():
            if len(values) < 2:
                raise ValueError(f"{attribute}: wanted at least two values, got {list(values)}")
            for value, words in values.items():
                for word in words:
                    if not word.strip():
                        raise ValueError(f"{attribute}: a word of {value!r} is empty")
                    if self._meaning.setdefault(word, (attribute, value)) != (attribute, value):
                        raise ValueError(
                            f"{word!r} says {attribute} {value} and {' '.join(self._meaning[word])}"
                        )
        if not self._meaning:
            raise ValueError("wanted at least one attribute")
        longest_first = "|".join(map(re.escape, sorted(self._meaning, key=len, reverse=True)))
        self._mention = re.compile(
            rf"(?P<article>\ban?\s+)?(?<!\w)(?P<word>{longest_first})(?!\w)", re.IGNORECASE
        )

    def said(self, text: str) -> dict[str, list[str]]:
        """Returns attribute -> values that the text says, both in their order in the text, each once."""
        found: dict[str, list[str]] = {}
        for attribute, value, _ in self._mentions(text):
            if value not in found.setdefault(attribute, []):
                found[attribute].append(value)
        return found

    def exchanged(
        self, text: str, attribute: str, rng: np.random.Generator, true: Collection[str] = ()
    ) -> str | None:
        """Returns the text with one of its values of an attribute replaced, wherever it is said, by another one.

        true: values that must not be put in, besides those that the text says. Returns None if no other is left, or the text
        says none. An article `a` or `an` before the word is adapted.
        """
        values = self.said(text).get(attribute, [])
        others = [value for value in self._words[attribute] if value not in values and value not in true]
        if not values or not others:
            return None
        old = values[int(rng.integers(len(values)))]
        words = self._words[attribute][others[int(rng.integers(len(others)))]]
        new = words[int(rng.integers(len(words)))]
        parts, end = [], 0
        for _, _, found in self._mentions(text):
            if self._meaning[found["word"].lower()] == (attribute, old):
                parts += [
                    text[end : found.start()],
                    _article(found["article"], new),
                    _cased(found["word"], new),
                ]
                end = found.end()
        return "".join([*parts, text[end:]])

    def _mentions(self, text: str) -> Iterator[tuple[str, str, re.Match[str]]]:
        for found in self._mention.finditer(text):
            yield *self._meaning[found["word"].lower()], found


def _article(old: str | None, next_word: str) -> str:
    if old is None:
        return ""
    word = "an" if next_word[0] in VOWELS else "a"
    return _cased(old, word) + old[len(old.rstrip()) :]


def _cased(old: str, new: str) -> str:
    return new[0].upper() + new[1:] if old[0].isupper() else new
