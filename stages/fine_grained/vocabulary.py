"""Finds the objects that a text names, by a list of objects with their synonyms."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from vlpipe.pipeline.errors import VlpipeError, did_you_mean, shown
from vlpipe.stages.lists.list import lines

WORD = re.compile(r"[^\W_]+")
# Endings of plurals and of their singular. A word is a plural only if its singular is in the vocabulary.
PLURALS = (
    ("people", "person"),
    ("children", "child"),
    ("men", "man"),
    ("mice", "mouse"),
    ("geese", "goose"),
    ("ves", "f"),
    ("ves", "fe"),
    ("ies", "y"),
    ("es", ""),
    ("s", ""),
)


class Vocabulary:
    """Objects and the words that name them. Words of several parts (`wine glass`) are found, too; longest first."""

    def __init__(self, synonyms: Mapping[str, str], phrases: Mapping[str, str] | None = None) -> None:
        """synonyms: word -> object. phrases: words that do not mean what they contain -> a word of `synonyms`, or "" for
        no object. Raises VlpipeError if one stands for a word that is not in `synonyms`."""
        self._objects: dict[tuple[str, ...], str] = {_key(word): name for word, name in synonyms.items()}
        self._names = {word.lower(): name for word, name in synonyms.items()}
        for phrase, word in (phrases or {}).items():
            if word and word.lower() not in self._names:
                raise VlpipeError(
                    f"phrases: {phrase!r} stands for {word!r}, which is not in the vocabulary"
                    f"{did_you_mean(word.lower(), self._names)}"
                )
            self._objects[_key(phrase)] = self._names[word.lower()] if word else ""
        self._longest = max(map(len, self._objects), default=0)

    def object_of(self, word: str) -> str | None:
        """Returns the object that a word of the vocabulary names, such as a label; None for another word."""
        return self._names.get(word.lower())

    def mentions(self, text: str) -> list[str]:
        """Returns the objects that a text names, in order, with repeats. Takes time linear in the text's length."""
        words = WORD.findall(text.lower())
        found: list[str] = []
        at = 0
        while at < len(words):
            num, name = self._at(words, at)
            found += [name] if name else []
            at += num
        return found

    def _at(self, words: Sequence[str], at: int) -> tuple[int, str]:
        """Returns (number of words, their object) of the longest words of the vocabulary from place `at`, whose last may be
        a plural; (1, "") if there are none."""
        for num in range(min(self._longest, len(words) - at), 0, -1):
            for key in _forms(tuple(words[at : at + num])):
                if key in self._objects:
                    return num, self._objects[key]
        return 1, ""


def _forms(words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    yield words
    *rest, last = words
    for plural, singular in PLURALS:
        if last.endswith(plural):
            yield (*rest, last[: -len(plural)] + singular)


def _key(word: str) -> tuple[str, ...]:
    return tuple(WORD.findall(word.lower()))


def read_synonyms(path: str) -> dict[str, str]:
    """Returns word -> object of a file with a line per object: its name, then its synonyms, separated by commas.

    Case and repeats within a line do not matter. Raises VlpipeError with the line if a word stands for two objects, and if
    the file has none.
    """
    found: dict[str, str] = {}
    for where, line in lines(path):
        words = [word.strip() for word in line.split(",") if word.strip()]
        for word in words:
            if not _key(word):
                raise VlpipeError(f"{where}: {shown(word)} has no letter or digit")
            if found.setdefault(word.lower(), words[0]) != words[0]:
                raise VlpipeError(f"{where}: {shown(word)} is also a word for {shown(found[word.lower()])}")
    if not found:
        raise VlpipeError(f"{path} has no words")
    return found
