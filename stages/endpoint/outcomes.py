"""What is wrong with a caption, as a short code: it is stored with `kept: false` and the code as `why`.

The rules read stored answers, so that other rules decide anew without asking.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vlpipe.pipeline.engine.records.answers import Answer

MAX_CHARS = 20_000  # of a stored caption, whatever the limits are
MAX_GRAM = 12  # words of what is repeated in a loop
LOOK_WORDS = 4_000
NO_SPACES = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\u0e00-\u0e7f]")
# How models begin that do not describe what they see. Compared with the start of the caption, in lower case.
REFUSALS = (
    "i'm sorry",
    "i am sorry",
    "sorry,",
    "i apologize",
    "i cannot",
    "i can't",
    "i can not",
    "i'm unable",
    "i am unable",
    "i'm not able",
    "i am not able",
    "i won't",
    "i must decline",
    "as an ai",
    "unfortunately, i",
    "it is not possible for me",
)
Identify = Callable[[Sequence[str]], list[tuple[str, float]]]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """max_words: of a caption, None for no limit; refusals: further starts of a refusal, in lower case; languages: those
    allowed, empty for all; repeats: a run of that many equal n-grams, one directly behind the other, is a loop."""

    max_words: int | None = None
    refusals: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    repeats: int = 4


def plain(text: str | None) -> str:
    """Returns a caption as it is stored: on one line, without control and format characters that show nothing."""
    text = text or ""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else " " for c in text[: 4 * MAX_CHARS])
    return " ".join(text.split())


def why_not(answer: Answer, caption: str, rules: Rules, identify: Identify | None) -> str:
    """Returns the code of what is wrong with an answer; empty if nothing is.

    http_<status>, refusal, truncated, empty, too_long, repetition, wrong_language. caption: `plain` text of the answer, or
    of a field in it.
    """
    if answer.status != 200:
        return f"http_{answer.status}"
    if answer.refusal or answer.finish == "content_filter" or is_refusal(caption, rules.refusals):
        return "refusal"
    if answer.finish == "length":
        return "truncated"
    if not caption:
        return "empty"
    return wrong_with(caption, rules, identify)


def wrong_with(caption: str, rules: Rules, identify: Identify | None) -> str:
    """Returns too_long, repetition or wrong_language; empty if nothing is wrong with a caption."""
    if len(caption) > MAX_CHARS or (rules.max_words is not None and len(caption.split()) > rules.max_words):
        return "too_long"
    if loops(caption, rules.repeats):
        return "repetition"
    if rules.languages and identify is not None and identify([caption])[0][0] not in rules.languages:
        return "wrong_language"
    return ""


def is_refusal(caption: str, more: Sequence[str] = ()) -> bool:
    start = caption[:80].lower().replace("\u2019", "'").lstrip("\"' ")
    return start.startswith((*REFUSALS, *more))


def loops(text: str, repeats: int = 4) -> bool:
    """True if an n-gram of up to MAX_GRAM words (characters, in scripts without spaces) occurs `repeats` times in a row.

    A single word has to occur twice as often: "very very very very good" is no loop. Linear in the length of the text.
    """
    tokens: Sequence[str] = text.lower().split()
    if NO_SPACES.search(text):
        tokens = text.replace(" ", "")
    tokens = tokens[:LOOK_WORDS]
    for size in range(1, MAX_GRAM + 1):
        wanted = size * ((2 * repeats if size == 1 else repeats) - 1)
        run = 0
        for at in range(size, len(tokens)):
            run = run + 1 if tokens[at] == tokens[at - size] else 0
            if run >= wanted:
                return True
    return False
