"""Bytes to text, clocks to seconds, markup to plain words: what the readers have in common."""

from __future__ import annotations

import codecs
import html
import re

from vlpipe.pipeline.errors import RowFault

BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark is its beginning
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Hours may be missing, or be many; milliseconds too. `00:00:00,1` is a tenth: digits after the point are a fraction.
CLOCK = re.compile(r"(?:(\d{1,4}):)?(\d{1,2}):(\d{1,2})(?:[.,](\d{1,9}))?")
# <i>, <font color=...>, <v Anna>, and {\an8} of .ass
TAG = re.compile(r"</?[A-Za-z][^<>]*>|</>|\{\\[^{}]*\}")


def decode(data: bytes, name: str, otherwise: str) -> tuple[str, str]:
    """(text, encoding): by the byte order mark, else UTF-8, else `otherwise`. RowFault: bad_subtitles."""
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
        "bad_subtitles", f"{name} is text in no encoding that was tried: {encoding or 'utf-8, ' + otherwise}"
    )


def seconds(clock: str) -> float | None:
    """`01:02:03.450`, `2:03,45`, `00:00:04`; None for anything else."""
    found = CLOCK.fullmatch(clock.strip())
    if found is None:
        return None
    hours, minutes, secs, fraction = found.groups()
    whole = int(hours or 0) * 3600 + int(minutes) * 60 + int(secs)
    return float(f"{whole}.{fraction or 0}")


def plain(text: str) -> str:
    """Without markup; entities (`&gt;&gt;`) as what they stand for, after the tags: `&lt;video&gt;` is a word."""
    return html.unescape(TAG.sub("", text))
