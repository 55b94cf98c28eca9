"""A helper module; another one lies below it."""

from __future__ import annotations

from mine.paste import paste

MARK = "0"


def glue(*texts: str) -> str:
    return paste(*(f"{MARK}{text}" for text in texts))
