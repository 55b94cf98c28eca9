"""The helper's helper."""

from __future__ import annotations

MARK = "0"


def paste(*texts: str) -> str:
    return f"<{'&'.join(texts)}>{MARK}"
