"""Turns values of rows into JSON: bytes as their number, long lists and texts cut, numbers that JSON lacks as null."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

MAX_CHARS, MAX_ITEMS = 2_000, 64
PAGE_CHARS, PAGE_ITEMS = 400, 8


def plain(value: Any, max_chars: int = MAX_CHARS, max_items: int = MAX_ITEMS) -> Any:
    """Returns the value as JSON has it. What is cut becomes {"cut": ..., "of": its length}, bytes become {"bytes": n}."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, Decimal):  # sums of integers in SQL
        return int(value) if value == int(value) else float(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        value = value.encode("utf-8", "replace").decode()
        return value if len(value) <= max_chars else {"cut": value[:max_chars], "of": len(value)}
    if isinstance(value, (bytes, memoryview)):
        return {"bytes": len(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(item, max_chars, max_items) for name, item in value.items()}
    if isinstance(value, Sequence):
        items = [plain(item, max_chars, max_items) for item in value[:max_items]]
        return items if len(value) <= max_items else {"cut": items, "of": len(value)}
    return str(value)


def on_page(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a row for a page of many rows: shorter than a single one."""
    return {name: plain(value, PAGE_CHARS, PAGE_ITEMS) for name, value in row.items()}
