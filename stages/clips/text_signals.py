"""Signals from a clip's text: speaking rate, repetition, and whether it is speech at all.

These are light columns for `filter.rules:Rules`. For the language, use `filter.language:Language` on the same rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from vlpipe.pipeline.shard import need, with_field
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.common.row import TEXTS
from vlpipe.stages.common.scores import with_columns
from vlpipe.stages.common.texts import FlatTexts, unescape

# [Music], (applause), *sighs*, a song between notes. Speaker marks (">> ") are not words.
TAG = re.compile(r"\[[^\]]*\]|\([^)]*\)|\*[^*]+\*|♪[^♪]*♪|♪")
SPEAKER = re.compile(r"(?<!\S)(?:>+|-)(?!\S)|^>+")
# Words that YouTube's speech recognition writes for sounds, and for speech in an unexpected language.
ALONE = frozenset(["applause", "cheering", "foreign", "laughter", "music"])


@dataclass(frozen=True, kw_only=True)
class TextSignals(MapStage):
    """Adds `clip_s` and, per text, `words_per_s`, `repeated_ngrams` and `tag_ratio` (all float32).

    clip_s: duration in seconds. words_per_s: over the time span of the text (text_start_s, text_end_s), or of the clip if
    rows lack these; null if that is 0. Speech has 2 to 3 words per second; many more indicate wrong subtitle times.
    repeated_ngrams: fraction of the sequences of `ngram` words, ignoring case, that occur earlier in the text; 0 if it has
    fewer words. tag_ratio: fraction of words that denote a sound ([Music], a song's notes) or foreign speech; 1 if the text
    has no words.
    """

    ngram: Annotated[int, Field(ge=1)] = 3

    NAME: ClassVar[str] = "clips.text_signals:TextSignals"
    VERSION: ClassVar[int] = 2

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "clips.text_signals", texts=TEXTS, start_s=pa.float64(), end_s=pa.float64())
        out = with_field(inp, pa.field("clip_s", pa.float32()))
        for name in ("words_per_s", "repeated_ngrams", "tag_ratio"):
            out = with_field(out, pa.field(name, pa.list_(pa.float32())))
        return out

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield self._measure

    def _measure(self, rows: pa.Table) -> pa.Table:
        flat = FlatTexts(rows["texts"])
        words = [spoken_words(text or "") for text in flat.field("text").to_pylist()]
        prefix = "text_" if "text_start_s" in rows.column_names else ""
        spoken_s = pc.subtract(rows[f"{prefix}end_s"], rows[f"{prefix}start_s"]).to_pylist()
        speed = [
            len(spoken) / spoken_s[row] if spoken_s[row] else None
            for (spoken, _), row in zip(words, flat.row, strict=True)
        ]
        repeated = [repeated_ngrams(spoken, self.ngram) for spoken, _ in words]
        tags = [num / (num + len(spoken)) if num + len(spoken) else 1.0 for spoken, num in words]
        return with_columns(
            rows,
            clip_s=pc.cast(pc.subtract(rows["end_s"], rows["start_s"]), pa.float32()),
            words_per_s=flat.nested(pa.array(speed, pa.float32())),
            repeated_ngrams=flat.nested(pa.array(repeated, pa.float32())),
            tag_ratio=flat.nested(pa.array(tags, pa.float32())),
        )


def spoken_words(text: str) -> tuple[list[str], int]:
    """Returns (spoken words in lower case, number of words that denote a sound or foreign speech)."""
    text = SPEAKER.sub(" ", unescape(text))
    num_tags = sum(max(1, len(tag.split())) for tag in TAG.findall(text))
    words = TAG.sub(" ", text).lower().split()
    if words and ALONE.issuperset(word.strip(".!") for word in words):
        return [], num_tags + len(words)
    return words, num_tags


def repeated_ngrams(words: Sequence[str], n: int) -> float:
    """Returns the fraction of n-grams that occur earlier in the text; 0 if there are fewer than n words."""
    grams = list(zip(*(words[k:] for k in range(n)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
