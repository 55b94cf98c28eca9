"""Formats values as text for a terminal: `<1,234 bytes>` for binary values, no control characters, long values cut."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from vlpipe.pipeline.errors import cut, printable

MAX_CHARS = 200
MAX_ITEMS = 4
DIGEST = re.compile(r"[0-9a-f]{64}")
URL = re.compile(r"[a-z][a-z0-9+.-]{0,30}://[^\s\"'<>]+", re.IGNORECASE)


def cell(value: Any, max_chars: int = MAX_CHARS) -> str:
    """Returns a value as one line of at most `max_chars` characters."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (bytes, memoryview)):
        return f"<{len(value):,} bytes>"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return cut(struct_text(value), max_chars)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return cut(_list(value), max_chars)
    return cut(printable(str(value)), max_chars)


def struct_text(value: Mapping[str, Any]) -> str:
    """Returns a struct as `text: a red circle, score: 0.97`; null fields are left out, digests cut to 8 digits."""
    shown = ((name, v[:8] if isinstance(v, str) and DIGEST.fullmatch(v) else v) for name, v in value.items())
    return ", ".join(f"{name}: {cell(v)}" for name, v in shown if v is not None) or "all null"


def _list(value: Sequence[Any]) -> str:
    shown = [f"({cell(v)})" if isinstance(v, Mapping) else cell(v) for v in value[:MAX_ITEMS]]
    more = f", ... {len(value):,} values" if len(value) > MAX_ITEMS else ""
    return f"[{', '.join(shown)}{more}]"


def size(num_bytes: float) -> str:
    """Returns a size as `1.2 MB`, in powers of 1,000."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


def counts(rejects: Mapping[str, int], max_codes: int | None = None) -> str:
    """Returns counts of rejects as `timeout 3, http_404 1`, most frequent first; `, ...` for those beyond `max_codes`.

    rejects: "kind:why" -> rows.
    """
    ordered = sorted(rejects.items(), key=lambda item: (-item[1], item[0]))
    text = ", ".join(f"{code.partition(':')[2]} {n:,}" for code, n in ordered[:max_codes])
    return text if len(ordered) <= (max_codes or len(ordered)) else f"{text}, ..."


def without_secrets(text: str) -> str:
    """Strips user name, password, query and fragment from URLs in `text`, as they may contain tokens."""
    return URL.sub(lambda found: _bare_url(found[0]), text) if "://" in text else text


def _bare_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
        host = parts.hostname or ""
    except ValueError:  # an invalid URL
        return url.split("://", 1)[0] + "://..."
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{port}{parts.path}"
