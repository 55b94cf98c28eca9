"""Functions for all subtitle readers: decode bytes, convert times to seconds, remove markup."""

from __future__ import annotations

import codecs
import re

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.common.texts import unescape

BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark is a prefix of this one
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
UTF16_XML = ((b"<\x00", "utf-16-le"), (b"\x00<", "utf-16-be"))
DECLARATION = re.compile(
    rb"""\s*<\?xml\b[^<>]{0,200}?\bencoding\s{0,9}=\s{0,9}["']([A-Za-z][A-Za-z0-9._-]{0,40})["']"""
)
NOT_ENCODINGS = frozenset({"idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined", "utf_7"})
LINE_END = re.compile(r"\r+\n?")
# Hours and fractions are optional, hours have up to four digits. Digits after the point are a fraction: `00:00:00,1` is
# 0.1 s.
CLOCK = re.compile(r"(?:(\d{1,4}):)?(\d{1,2}):(\d{1,2})(?:[.,](\d{1,9}))?")
# <i>, <font color=...>, <v Anna>, and {\an8} of .ass
TAG = re.compile(r"</?[A-Za-z][^<>]*>|</>|\{\\[^{}]*\}")


def decode(data: bytes, name: str, otherwise: str) -> tuple[str, str, bool]:
    """Returns (text, name of its encoding, whether that was the second one tried). Each line of the text ends in LF.

    Tried: with a byte order mark, only its encoding; else, if XML declares one, that one, then UTF-8; else UTF-8, then
    `otherwise`. Raises RowFault (bad_subtitles) if none fits or the text has a NUL character.
    """
    bom, encoding = next(((bom, e) for bom, e in BOMS if data.startswith(bom)), (b"", ""))
    declared = "" if encoding else declared_encoding(data, name)
    tried = [encoding] if encoding else [declared, "utf-8"] if declared else ["utf-8", otherwise]
    for number, one in enumerate(tried):
        try:
            text = data[len(bom) :].decode(one)
        except UnicodeDecodeError:
            continue
        if "\x00" in text:
            raise RowFault("bad_subtitles", f"{name} is not a text file: it contains a NUL character")
        return LINE_END.sub(_line_end, text), one, number == 1
    raise RowFault("bad_subtitles", f"{name} cannot be decoded as {' or '.join(dict.fromkeys(tried))}")


def _line_end(found: re.Match[str]) -> str:
    """CR CR LF is one line end, written by tools that convert twice; without LF, each CR is one."""
    return "\n" if found[0].endswith("\n") else "\n" * len(found[0])


def declared_encoding(data: bytes, name: str) -> str:
    """Returns Python's name of the encoding in the XML declaration, or "" if there is none.

    UTF-16 without a byte order mark is recognised by its first character, "<". A declaration of UTF-16 or UTF-32 that can be
    read as ASCII is wrong: "". Raises RowFault (bad_subtitles) for an encoding that is not known.
    """
    for start, encoding in UTF16_XML:
        if data.startswith(start):
            return encoding
    found = DECLARATION.match(data[:400])
    declared = found[1].decode("ascii") if found else ""
    if declared.lower().replace("_", "-").startswith(("utf-16", "utf-32", "ucs")):
        return ""  # untrue, as the declaration itself could be read as ASCII
    try:
        known = codecs.lookup(declared).name if declared else ""
        b" ".decode(known or "utf-8", "replace")  # LookupError for codecs that are not of texts
    except (LookupError, ValueError) as error:
        raise RowFault(
            "bad_subtitles", f"{name} declares the encoding {declared!r}, which does not exist"
        ) from error
    if known.replace("-", "_") in NOT_ENCODINGS:
        raise RowFault("bad_subtitles", f"{name} declares the encoding {declared!r}, which does not exist")
    return known


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
    return unescape(TAG.sub("", text))
