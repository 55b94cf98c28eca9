"""Ids and URLs of forgotten rows in sentences: details of rejects, lines of logs.

An id of a few characters may be a word or a number, as in "after 12 tries". So a short one counts only where it is said to
be a row: after "row" or "twin of", as the stages here write it. A long one counts wherever it stands, a URL too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from vlpipe.pipeline.forget.urls import Urls
from vlpipe.pipeline.parquet.text_sets import TextSet

SOMEONE = "a forgotten row"  # in place of its id or URL, in the record of another row
LONG = 16  # characters of an id that is no word
LEAD = re.compile(r"\b(row|twin of) $")
MAX_WORDS = 8  # that an id behind such a lead can have
NAMING = ("id", "parent", "witness")  # keys of a line of a log under which a short id is one
WORD = re.compile(r"[^\s,;()]+")
AROUND = "\"'`.:!?<>[]{}"  # what may stand around a word


def may_name(text: str) -> Iterator[tuple[int, int]]:
    """Where something stands in a text that may be an id or a URL, from the longest on."""
    words = [m.span() for m in WORD.finditer(text)]
    for n, (start, end) in enumerate(words):
        if LEAD.search(text[max(0, start - 9) : start]):
            for _, later in reversed(words[n : n + MAX_WORDS]):
                yield from _bare(text, start, later)
        elif end - start >= LONG or "://" in text[start:end]:
            yield from _bare(text, start, end)


def _bare(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """As it is, and without quotes and stops around it."""
    yield start, end
    inner = text[start:end]
    left = len(inner) - len(inner.lstrip(AROUND))
    right = len(inner.rstrip(AROUND))
    if (left, right) != (0, len(inner)) and left < right:
        yield start + left, start + right


def known_names(texts: Iterable[str], ids: TextSet, urls: Urls) -> set[str]:
    """What of the texts is a forgotten id or URL."""
    names = {text[start:end] for text in texts for start, end in may_name(text)}
    return ids.known(names) | urls.known([name for name in names if "://" in name])


def without_names(text: str, known: set[str]) -> str:
    """The text with SOMEONE in place of each known name."""
    parts, at = [], 0
    for start, end in may_name(text) if known else ():
        if start >= at and text[start:end] in known:
            parts += [text[at:start].removesuffix("row "), SOMEONE]  # not "row a forgotten row"
            at = end
    return "".join([*parts, text[at:]])


def strings_in(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(key, string) of all strings in a JSON value."""
    if isinstance(value, dict):
        for name, one in value.items():
            yield from strings_in(one, name)
    elif isinstance(value, list):
        for one in value:
            yield from strings_in(one, key)
    elif isinstance(value, str):
        yield key, value


def names_in(value: Any) -> Iterator[str]:
    """What of a line of a log, as JSON, may be an id or a URL."""
    for key, text in strings_in(value):
        if key in NAMING or len(text) >= LONG or "://" in text:
            yield text
        yield from (text[start:end] for start, end in may_name(text))
