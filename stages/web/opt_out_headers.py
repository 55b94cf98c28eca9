"""Finds opt-outs in response headers and in files; the text of an opt-out is returned, to be stored as evidence.

X-Robots-Tag: https://developers.google.com/search/docs/crawling-indexing/robots-meta-tag (several headers, several
directives, a bot's name before those for that bot only); noai and noimageai as introduced by DeviantArt; noml as
proposed at https://noml.info. TDM reservation: https://www.w3.org/community/reports/tdmrep/CG-FINAL-tdmrep-20240510/.
Content-Usage: IETF AIPREF, still a draft (draft-ietf-aipref-attach-04). C2PA: the training and data mining assertion,
https://cawg.io/training-and-data-mining/1.1/. Its signature is not checked: unsigned opt-outs are respected too.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Collection, Iterator
from typing import Literal, Protocol, get_args

# `none` means noindex and nofollow. All of these are read as "not for a training set".
Signal = Literal[
    "noai",
    "noimageai",
    "noindex",
    "noimageindex",
    "none",
    "noml",
    "tdm-reservation",
    "content-usage",
    "c2pa-training-mining",
]
DEFAULT: tuple[Signal, ...] = get_args(Signal)
HEADERS = ("X-Robots-Tag", "TDM-Reservation", "Content-Usage")
MAX_EVIDENCE = 300  # characters
# Directives with a value: the name before their colon is not a bot.
VALUED = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
BOT = re.compile(r"[a-z*][a-z0-9_.*-]*")  # starts with a letter: `15:00:00 GMT` after a comma is not a bot
# An assertion entry whose `use` is notAllowed, in CBOR or JSON: between these three are lengths, quotes and one or two keys,
# at most MAX_BETWEEN bytes each.
C2PA_ENTRY = re.compile(rb"(?:c2pa|cawg)\.(?:ai_generative_training|ai_training|data_mining)(?=[^.])")
USE, NOT_ALLOWED, MAX_BETWEEN = b"use", b"notAllowed", 80
TRAINING = frozenset({"train-ai", "train-genai"})


class Headers(Protocol):
    """Response headers: case-insensitive names, several values per name."""

    def getall(self, key: str, default: list[str]) -> list[str]: ...


def opted_out(headers: Headers, bot: str, signals: Collection[str] = DEFAULT) -> str | None:
    """Returns the header line that opts out for `bot` (a product token such as `vlpipe`), else None.

    signals: those to respect, as in Signal: directives of X-Robots-Tag, `tdm-reservation`, `content-usage`.
    """
    for name in HEADERS:
        for value in headers.getall(name, []):
            if _says_no(name, value, bot, signals):
                return _evidence(name, value)
    return None


def opted_out_inside(data: bytes | mmap.mmap, signals: Collection[str] = DEFAULT) -> str | None:
    """Returns the opt-out in a file's C2PA manifest, such as `C2PA c2pa.ai_training: notAllowed`.

    None if there is none, or `c2pa-training-mining` is not in `signals`.
    """
    if "c2pa-training-mining" not in signals or data.find(b".training-mining") < 0:
        return None
    for entry in C2PA_ENTRY.finditer(data):
        end = entry.end() + 2 * MAX_BETWEEN + len(USE) + len(NOT_ALLOWED)
        if _is_not_allowed(data[entry.end() : end].partition(b".")[0]):
            return f"C2PA {entry[0].decode()}: notAllowed"
    return None


def opted_out_in_file(path: str, signals: Collection[str] = DEFAULT) -> str | None:
    """Returns the opt-out in the C2PA manifest of a stored file, as `opted_out_inside`, without loading the file."""
    if "c2pa-training-mining" not in signals or not os.path.getsize(path):  # an empty file cannot be mapped
        return None
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return opted_out_inside(data, signals)


def _is_not_allowed(after: bytes) -> bool:
    """Returns whether `use` and then `notAllowed` follow in the bytes after the name of an assertion entry."""
    no = after.find(NOT_ALLOWED)
    while no >= 0:
        last = min(max(no - 1, 0), MAX_BETWEEN + len(USE))  # where `use` may end
        if after.rfind(USE, max(1, no - MAX_BETWEEN - len(USE)), last) >= 0:
            return True
        no = after.find(NOT_ALLOWED, no + 1)
    return False


def is_opt_out(evidence: str, bot: str, signals: Collection[str] = DEFAULT) -> bool:
    """Returns True if evidence recorded earlier, for example by another step, is an opt-out for this bot and these signals.

    evidence: as returned by `opted_out` or `opted_out_inside`. What is truncated, or of another form (such as a line about
    robots.txt), cannot be parsed again and always counts as an opt-out.
    """
    name, _, value = evidence.partition(": ")
    if name in HEADERS and len(evidence) < MAX_EVIDENCE:
        return _says_no(name, value, bot, signals)
    return not name.startswith("C2PA ") or "c2pa-training-mining" in signals


def robots_directives(value: str, bot: str) -> Iterator[str]:
    """Yields the directives of one X-Robots-Tag that apply to all bots or to `bot`, in lower case."""
    applies = True
    for part in value.lower().split(","):
        name, colon, rest = (piece.strip() for piece in part.partition(":"))
        if colon and name in VALUED:
            continue
        if colon and BOT.fullmatch(name):
            applies = name in ("*", bot.lower())
            name = rest.partition(":")[0].strip()
        if applies and name:
            yield name


def _says_no(name: str, value: str, bot: str, signals: Collection[str]) -> bool:
    if name == "X-Robots-Tag":
        return any(directive in signals for directive in robots_directives(value, bot))
    if name == "TDM-Reservation":
        return "tdm-reservation" in signals and value.strip() == "1"
    return "content-usage" in signals and _says_no_to_training(value)


def _says_no_to_training(value: str) -> bool:
    """Returns whether a dictionary of RFC 9651, such as `search=y, train-ai=n;x=1`, disallows training."""
    pairs = (item.partition(";")[0].partition("=") for item in value.lower().split(","))
    return any(name.strip() in TRAINING and answer.strip() == "n" for name, _, answer in pairs)


def _evidence(name: str, value: str) -> str:
    """Returns the header line, with control characters replaced, truncated to MAX_EVIDENCE characters."""
    line = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in f"{name}: {value}")
    return line if len(line) <= MAX_EVIDENCE else line[: MAX_EVIDENCE - 3] + "..."
