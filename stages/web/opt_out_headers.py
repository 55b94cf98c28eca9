"""Opt-outs in response headers and in the file: who says no is not collected, and what they said is kept as evidence.

X-Robots-Tag: https://developers.google.com/search/docs/crawling-indexing/robots-meta-tag (several headers, several
directives, a bot's name before those meant for it alone); noai and noimageai as DeviantArt introduced them; noml as
proposed at https://noml.info. TDM reservation: https://www.w3.org/community/reports/tdmrep/CG-FINAL-tdmrep-20240510/.
Content-Usage: IETF AIPREF, still a draft (draft-ietf-aipref-attach-04). C2PA: the training and data mining assertion,
https://cawg.io/training-and-data-mining/1.1/, read without a check of its signature: a no counts from anybody.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Literal, Protocol, get_args

# `none` is noindex and nofollow in one. All of these are read as "not for a training set".
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
# Directives with a value: what stands before their colon is no bot.
VALUED = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
BOT = re.compile(r"[a-z*][a-z0-9_.*-]*")  # begins with a letter: `15:00:00 GMT` after a comma names no bot
# An entry and its use, in CBOR or JSON; what stands between are lengths, quotes, and a key or two.
C2PA_NO = re.compile(
    rb"((?:c2pa|cawg)\.(?:ai_generative_training|ai_training|data_mining))[^.]{1,80}?use[^.]{1,80}?notAllowed"
)
TRAINING = frozenset({"train-ai", "train-genai"})


class Headers(Protocol):
    """What this needs of a response's headers: names without regard to case, several values to a name."""

    def getall(self, key: str, default: list[str]) -> list[str]: ...


def opted_out(headers: Headers, bot: str, signals: Collection[str] = DEFAULT) -> str | None:
    """The header that says no to `bot` (a product token such as `vlpipe`), as it came; None when none does.

    signals: directives of X-Robots-Tag that count, and `tdm-reservation`, `content-usage`.
    """
    for name in HEADERS:
        for value in headers.getall(name, []):
            if _says_no(name, value, bot, signals):
                return _evidence(name, value)
    return None


def opted_out_inside(data: bytes, signals: Collection[str] = DEFAULT) -> str | None:
    """What a file's C2PA manifest says against training or mining, such as `c2pa.ai_training: notAllowed`; else None."""
    if "c2pa-training-mining" not in signals or b".training-mining" not in data:
        return None
    found = C2PA_NO.search(data)
    return f"C2PA {found[1].decode()}: notAllowed" if found else None


def is_no(evidence: str, bot: str, signals: Collection[str] = DEFAULT) -> bool:
    """Is what was evidence once (of another step, say) one by these rules? What was cut cannot be read again, and is."""
    name, _, value = evidence.partition(": ")
    if name in HEADERS and len(evidence) < MAX_EVIDENCE:
        return _says_no(name, value, bot, signals)
    return not name.startswith("C2PA ") or "c2pa-training-mining" in signals


def robots_directives(value: str, bot: str) -> Iterator[str]:
    """Directives of one X-Robots-Tag that are for everybody or for `bot`, in lower case."""
    meant = True
    for part in value.lower().split(","):
        name, colon, rest = (piece.strip() for piece in part.partition(":"))
        if colon and name in VALUED:
            continue
        if colon and BOT.fullmatch(name):
            meant = name in ("*", bot.lower())
            name = rest.partition(":")[0].strip()
        if meant and name:
            yield name


def _says_no(name: str, value: str, bot: str, signals: Collection[str]) -> bool:
    if name == "X-Robots-Tag":
        return any(directive in signals for directive in robots_directives(value, bot))
    if name == "TDM-Reservation":
        return "tdm-reservation" in signals and value.strip() == "1"
    return "content-usage" in signals and _says_no_to_training(value)


def _says_no_to_training(value: str) -> bool:
    """A dictionary of RFC 9651: `search=y, train-ai=n;x=1`."""
    pairs = (item.partition(";")[0].partition("=") for item in value.lower().split(","))
    return any(name.strip() in TRAINING and said.strip() == "n" for name, _, said in pairs)


def _evidence(name: str, value: str) -> str:
    """Verbatim, but for control characters; cut where it is very long."""
    line = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in f"{name}: {value}")
    return line if len(line) <= MAX_EVIDENCE else line[: MAX_EVIDENCE - 3] + "..."
