"""The class of an image, from the words of its captions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from vlpipe.pipeline.shard import Out, Reject, need, with_field
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.common.batches import without
from vlpipe.stages.common.row import TEXTS
from vlpipe.stages.common.scores import with_columns

WORD = re.compile(r"\w+")
LABEL = pa.field("label", pa.int32())  # of `stages.loading.makers.label`


@dataclass(frozen=True, kw_only=True)
class WordLabels(MapStage):
    """Adds `label` (int32): the place among `words` of the one that the row's captions contain.

    source: of the captions. Rows whose captions contain none of the words, or several, are rejected: no_class,
    several_classes. This is the rule of `evaluate.probe`.
    """

    words: tuple[str, ...]
    source: str = "human"

    NAME: ClassVar[str] = "classification.labels:WordLabels"

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "classification.labels", id=pa.string(), texts=TEXTS)
        return with_field(inp, LABEL)

    def preflight(self) -> list[str]:
        return word_problems(self.words)

    @contextmanager
    def open(self) -> Iterator[Work]:
        def work(rows: pa.Table) -> Out:
            labels: list[int] = []
            rejects: list[Reject] = []
            for id_, texts in zip(rows["id"].to_pylist(), rows["texts"].to_pylist(), strict=True):
                found = words_in(self.words, [t["text"] for t in texts or () if t["source"] == self.source])
                if len(found) == 1:
                    labels += found
                else:
                    why = "several_classes" if found else "no_class"
                    named = ", ".join(self.words[k] for k in found)
                    rejects.append(Reject(id_, "filtered", why, named))
            kept = without(rows, rejects)
            return Out(with_columns(kept, label=pa.array(labels, LABEL.type)), rejects)

        yield work


def word_problems(words: Sequence[str]) -> list[str]:
    """Returns what is wrong with `words` as names of classes, of which a caption has one or none (`words_in`)."""
    lower = {word.lower() for word in words}
    if len(lower) < len(words) or len(lower) < 2:
        return [f"words: wanted at least 2 different classes, got {list(words)}"]
    return [
        f"words: {word!r} is not one word, so no caption has it"
        for word in words
        if not WORD.fullmatch(word.lower())
    ]


def words_in(words: Sequence[str], texts: Sequence[str]) -> list[int]:
    """Returns the places of those of `words` that the texts contain, whatever their case."""
    said = set(WORD.findall(" ".join(texts).lower()))
    return [k for k, word in enumerate(words) if word.lower() in said]
