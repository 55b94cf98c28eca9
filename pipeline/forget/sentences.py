"""Finds and replaces ids and URLs of forgotten rows in sentences: details of rejects, lines of logs.

A short id may be a word or a number, as in "after 12 tries", so it is recognized only after "row" or "duplicate of" (in
older roots "twin of"), which the stages write before ids. Long ids and URLs are recognized anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from vlpipe.pipeline.forget.urls import Urls
from vlpipe.pipeline.parquet.text_sets import TextSet

SOMEONE = "a forgotten row"  # replaces its id or URL in records of other rows
LONG = 16  # min characters of an id that cannot be a word
LEAD = re.compile(r"\b(row|duplicate of|twin of) $")  # precedes an id in details and log lines
LEAD_LENGTH = len("duplicate of ") + 1
MAX_WORDS = 8  # max words of an id after LEAD
NAMING = ("id", "parent", "witness")  # keys of a log line whose values are ids even if short
WORD = re.compile(r"[^\s,;()]+")
AROUND = "\"'`.:!?<>[]{}"  # characters that may surround an id


def may_name(text: str) -> Iterator[tuple[int, int]]:
    """Yields (start, end) of each part of a text that may be an id or a URL; longer candidates first."""
    words = [m.span() for m in WORD.finditer(text)]
    for n, (start, end) in enumerate(words):
        if LEAD.search(text[max(0, start - LEAD_LENGTH) : start]):
            for _, later in reversed(words[n : n + MAX_WORDS]):
                yield from _bare(text, start, later)
        elif end - start >= LONG or "://" in text[start:end]:
            yield from _bare(text, start, end)


def _bare(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yields the span unchanged, and without the quotes and punctuation around it."""
    yield start, end
    inner = text[start:end]
    left = len(inner) - len(inner.lstrip(AROUND))
    right = len(inner.rstrip(AROUND))
    if (left, right) != (0, len(inner)) and left < right:
        yield start + left, start + right


def known_names(texts: Iterable[str], ids: TextSet, urls: Urls) -> set[str]:
    """Returns the parts of the texts that are forgotten ids or URLs."""
    names = {text[start:end] for text in texts for start, end in may_name(text)}
    return ids.known(names) | urls.known([name for name in names if "://" in name])


def without_names(text: str, known: set[str]) -> str:
    """Returns the text with each name in `known` replaced by SOMEONE."""
    parts, at = [], 0
    for start, end in may_name(text) if known else ():
        if start >= at and text[start:end] in known:
            parts += [text[at:start].removesuffix("row "), SOMEONE]  # not "row a forgotten row"
            at = end
    return "".join([*parts, text[at:]])


def strings_in(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yields (key, string) for all strings in a JSON value; the items of a list have the key of the list."""
    if isinstance(value, dict):
        for name, one in value.items():
            yield from strings_in(one, name)
    elif isinstance(value, list):
        for one in value:
            yield from strings_in(one, key)
    elif isinstance(value, str):
        yield key, value


def names_in(value: Any) -> Iterator[str]:
    """Yields all texts in a parsed log line that may be an id or a URL."""
    for key, text in strings_in(value):
        if key in NAMING or len(text) >= LONG or "://" in text:
            yield text
        yield from (text[start:end] for start, end in may_name(text))
