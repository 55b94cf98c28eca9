"""Functions for all subtitle readers: decode bytes, convert times to seconds, remove markup."""

from __future__ import annotations

import codecs
import html
import re

from vlpipe.pipeline.errors import RowFault

BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark is a prefix of this one
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Hours and fractions are optional, hours have up to four digits. Digits after the point are a fraction: `00:00:00,1` is
# 0.1 s.
CLOCK = re.compile(r"(?:(\d{1,4}):)?(\d{1,2}):(\d{1,2})(?:[.,](\d{1,9}))?")
# <i>, <font color=...>, <v Anna>, and {\an8} of .ass
TAG = re.compile(r"</?[A-Za-z][^<>]*>|</>|\{\\[^{}]*\}")


def decode(data: bytes, name: str, otherwise: str) -> tuple[str, str]:
    """Decode by the byte order mark, else as UTF-8, else as `otherwise`; returns (text, encoding).

    Raises RowFault (bad_subtitles) if none fits or the text has a NUL character.
    """
    bom, encoding = next(((bom, e) for bom, e in BOMS if data.startswith(bom)), (b"", ""))
    for one in [encoding] if encoding else ["utf-8", otherwise]:
        try:
            text = data[len(bom) :].decode(one)
        except UnicodeDecodeError:
            continue
        if "\x00" in text:
            raise RowFault("bad_subtitles", f"{name} is binary: it has a NUL character")
        return text.replace("\r\n", "\n").replace("\r", "\n"), one
    raise RowFault(
        "bad_subtitles", f"{name} is not text in any encoding tried: {encoding or 'utf-8, ' + otherwise}"
    )


def seconds(clock: str) -> float | None:
    """Returns the seconds of a time such as `01:02:03.450`, `2:03,45` or `00:00:04`, or None for other texts."""
    found = CLOCK.fullmatch(clock.strip())
    if found is None:
        return None
    hours, minutes, secs, fraction = found.groups()
    whole = int(hours or 0) * 3600 + int(minutes) * 60 + int(secs)
    return float(f"{whole}.{fraction or 0}")


def plain(text: str) -> str:
    """Returns a text without markup. Entities (`&gt;&gt;`) are decoded after tags are removed: `&lt;video&gt;` is a word."""
    return html.unescape(TAG.sub("", text))
