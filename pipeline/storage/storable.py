"""Makes values of stages and libraries storable: text as valid UTF-8, JSON without NaN."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

# Lone surrogates are not valid UTF-8; control characters would reach the reader's terminal. Newlines and tabs are kept.
ODD = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
MAX_TEXT = 10_000
MAX_DEPTH = 20


def storable(text: object, max_chars: int = MAX_TEXT) -> str:
    """Returns the text with surrogates and control characters escaped, cut to `max_chars` characters."""
    if type(text) is str and len(text) <= max_chars and text.isprintable():  # nearly all
        return text
    try:
        whole = text if isinstance(text, str) else str(text)
    except Exception as error:  # e.g. an exception whose __str__ raises
        whole = f"(no text: {type(text).__name__}.__str__ raises {type(error).__name__})"
    shown = ODD.sub(lambda m: m[0].encode("unicode_escape").decode(), whole[: max_chars + 1])
    return shown if len(shown) <= max_chars else shown[: max_chars - 4] + " ..."


def storable_json(value: Any, depth: int = 0) -> Any:
    """Returns the value as strict JSON. NumPy and torch scalars become numbers, tuples and sets lists.

    Everything else that JSON cannot hold becomes a string: NaN, infinity, other objects, keys that are not strings; also
    values nested deeper than `MAX_DEPTH`. depth: nesting depth of `value`.
    """
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if depth < MAX_DEPTH and isinstance(value, Mapping):
        return {storable(k): storable_json(v, depth + 1) for k, v in value.items()}
    if depth < MAX_DEPTH and isinstance(value, (list, tuple, set, frozenset)):
        return [storable_json(v, depth + 1) for v in value]
    item = getattr(value, "item", None)  # a NumPy or torch scalar
    if callable(item) and getattr(value, "size", None) == 1:
        return storable_json(item(), depth + 1) if depth < MAX_DEPTH else storable(value)
    return storable(value)
