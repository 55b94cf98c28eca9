"""Captions of demo scenes with one attribute wrong: the hardest negatives of matching."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from vlpipe.pipeline.shard import Out, need, with_field
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.common.row import TEXTS
from vlpipe.stages.common.scores import with_columns
from vlpipe.stages.common.texts import FlatTexts
from vlpipe.stages.demo.captions import COLOUR_WORDS, SHAPE_WORDS

WRONG = pa.list_(
    pa.list_(pa.struct([("text", pa.string())]))
)  # of each text of the row; null for a dropped text


@dataclass(frozen=True, kw_only=True)
class WrongCaptions(MapStage):
    """Adds `column`: for each kept text of a demo scene, all texts in which one colour or shape is another one.

    The other one is no colour or shape that the text names. A scene's objects differ in both, so each of these is wrong. The
    column is as `text_neighbours.neighbours` makes it, for `mismatch_similar:MismatchSimilar`.
    """

    NAME: ClassVar[str] = "demo.tasks.wrong_captions:WrongCaptions"

    column: str = "neighbours"

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "demo.tasks.wrong_captions", id=pa.string(), texts=TEXTS)
        return with_field(inp, pa.field(self.column, WRONG))

    @contextmanager
    def open(self) -> Iterator[Work]:
        def work(rows: pa.Table) -> Out:
            flat = FlatTexts(rows["texts"])
            found = [
                [{"text": one} for one in wrong_captions(text)] if kept and text else None
                for text, kept in zip(flat.field("text").to_pylist(), flat.kept().tolist(), strict=True)
            ]
            return Out(with_columns(rows, **{self.column: flat.nested(pa.array(found, WRONG.value_type))}))

        yield work


def wrong_captions(text: str) -> list[str]:
    """Returns the texts that differ from a caption in one word, a colour or shape that it does not name, and its article."""
    words, found = text.split(), []
    for values in (COLOUR_WORDS, SHAPE_WORDS):
        value_of = _values(values)
        named = {value_of[word] for word in words if word in value_of}
        for at, word in enumerate(words):
            if word in value_of:
                others = [value for value in values if value not in named]
                found += [" ".join(_replaced(words, at, values[value][0])) for value in others]
    return found


def _replaced(words: Sequence[str], at: int, word: str) -> list[str]:
    """Returns the words with another one at place `at`, and the article before it as that one needs it."""
    before = list(words[:at])
    if before and before[-1] in ("a", "an"):
        before[-1] = "an" if word[0] in "aeiou" else "a"
    return [*before, word, *words[at + 1 :]]


def _values(values: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Returns word -> the value that it names."""
    return {word: value for value, words in values.items() for word in words}
