"""Cheap rules that need no model: texts too short, too long, or that read like file names and shop talk."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.features.batches import with_texts
from vlpipe.stages.row import TEXTS

JUNK = (
    r"\b(img|dsc|dscn|dscf|dcim|pict|screen ?shot|untitled)[ _-]?\d*\b",  # names cameras and programs give
    r"\.(jpe?g|png|gif|webp|tiff?|bmp)\b",
    r"https?://|www\.",
    r"\b(best price|free shipping|buy now|click here|add to cart|lorem ipsum)\b",
)


@dataclass(frozen=True, kw_only=True)
class TextRules(MapStage):
    """Mark texts of `sources` that break a rule: kept False, why `too_few_words`, `too_many_words` or `junk`.

    Words are what whitespace parts. `junk`: regular expressions, searched for without regard to case. A text
    that passes is left as it is, and so is one that was dropped before; rows stay.
    """

    min_words: int = 3
    max_words: int = 64
    junk: tuple[str, ...] = JUNK
    sources: tuple[str, ...] = ("web",)

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "filter.texts", texts=TEXTS)
        return inp

    def preflight(self) -> list[str]:
        problems = [p for pattern in self.junk if (p := _broken(pattern))]
        if not 0 <= self.min_words <= self.max_words:
            problems.append(f"wanted 0 <= min_words <= max_words, got {self.min_words} and {self.max_words}")
        return problems

    @contextmanager
    def open(self) -> Iterator[Work]:
        junk = [re.compile(pattern, re.IGNORECASE) for pattern in self.junk]

        def judge(entry: dict[str, Any]) -> dict[str, Any]:
            if entry["source"] not in self.sources or entry["kept"] is False:
                return entry
            why = self.reason(entry["text"], junk)
            return entry if why is None else {**entry, "kept": False, "why": why}

        yield lambda table: with_texts(
            table, [[judge(t) for t in ts or ()] for ts in table["texts"].to_pylist()]
        )

    def reason(self, text: str, junk: list[re.Pattern[str]]) -> str | None:
        """Why a text is dropped; None when it is not."""
        num_words = len(text.split())
        if num_words < self.min_words:
            return "too_few_words"
        if num_words > self.max_words:
            return "too_many_words"
        return "junk" if any(pattern.search(text) for pattern in junk) else None


def _broken(pattern: str) -> str | None:
    try:
        re.compile(pattern)
    except re.error as error:
        return f"junk: {pattern!r} is no regular expression: {error}"
    return None
