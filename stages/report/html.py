"""Formats text for the page: escaped, shortened, without secrets. Captions and URLs are untrusted input."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence

from vlpipe.pipeline.storage.printable import without_secrets

_CONTROL = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")
_DIGEST = re.compile(r"\b[0-9a-f]{64}\b")


def esc(value: object) -> str:
    """Escapes for text and quoted attributes. Control and bidi characters are replaced by U+FFFD."""
    return html.escape(_CONTROL.sub("\ufffd", str(value)), quote=True)


def stranger(text: str, max_chars: int = 1000) -> str:
    """Shortens untrusted text: strips secrets, cuts digests to ten digits, limits the length. It is not escaped yet."""
    short = _DIGEST.sub(lambda found: found[0][:10], without_secrets(text))
    return short if len(short) <= max_chars else short[:max_chars] + "..."


def count(number: int) -> str:
    return f"{number:,}"


def share(part: int, whole: int) -> str:
    """Formats a fraction as `12.3 %`; a small non-zero one as `&lt; 0.1 %`. If `whole` is 0: `0 %`."""
    if not whole or not part:
        return "0 %"
    percent = 100 * part / whole
    if percent < 0.1:
        return "&lt; 0.1 %"
    return f"{percent:.1f} %" if percent < 99.95 or part == whole else "99.9 %"


def seconds(value: float | None) -> str:
    if value is None:
        return ""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def number(value: float | None) -> str:
    """Formats a number with four significant digits, from 10,000 on without decimals; None as a dash."""
    if value is None:
        return "-"
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def number_table(columns: Sequence[str], rows: str) -> str:
    """Returns a table with a column of names, then columns of numbers; `rows` is HTML."""
    head = "".join(f'<th class="num">{esc(name)}</th>' for name in columns)
    inner = f"<thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody>"
    return f'<div class="scroll"><table class="results">{inner}</table></div>'
