"""Signals of captions, as columns for rules; and captions without the phrases that they begin with.

`filter.rules` with `preset: captions` and `sources: [synth]` drops captions by them, counts what each rule drops, and can
skip or replace each of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from vlpipe.pipeline.shard import Out, need, with_field
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.common.row import TEXTS
from vlpipe.stages.common.scores import with_columns
from vlpipe.stages.common.texts import FlatTexts
from vlpipe.stages.hygiene.phrases import MISSING_IMAGE, REFUSAL, plain, start_length, without_start
from vlpipe.stages.hygiene.repetition import num_repeats
from vlpipe.stages.hygiene.unsupported import new_names, new_numbers

COLUMNS: dict[str, pa.DataType] = {
    "boilerplate": pa.bool_(),
    "missing_image": pa.bool_(),
    "refusal": pa.bool_(),
    "num_repeats": pa.int32(),
    "new_numbers": pa.int32(),
    "new_names": pa.int32(),
}
EMPTY = "empty"


@dataclass(frozen=True, kw_only=True)
class CaptionSignals(MapStage):
    """Adds columns with one value per text of `sources`; texts of other sources, and dropped ones, get null.

    `boilerplate`: it begins with a phrase such as "the image shows"; `missing_image`: it says that there is no image;
    `refusal`: it declines to describe it. `num_repeats`: how often a group of words stands in a row, at most.
    `new_numbers`, `new_names`: numbers, and words written as names, that none of the row's texts of `known_from` has,
    dropped ones included; `new_names` is null for titles. Phrases are English.
    """

    NAME: ClassVar[str] = "hygiene.signals:CaptionSignals"

    sources: tuple[str, ...] = ("synth",)
    known_from: tuple[str, ...] = ("web", "human")

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "hygiene.signals", id=pa.string(), texts=TEXTS)
        for name, dtype in COLUMNS.items():
            inp = with_field(inp, pa.field(name, pa.list_(dtype)))
        return inp

    @contextmanager
    def open(self) -> Iterator[Work]:
        missing, refusal = _any_of(MISSING_IMAGE), _any_of(REFUSAL)

        def work(rows: pa.Table) -> pa.Table:
            flat = FlatTexts(rows["texts"])
            judged = flat.still_in(self.sources).tolist()
            texts = flat.field("text").to_pylist()
            known = _known(flat, texts, self.known_from)
            found: dict[str, list[Any]] = {name: [] for name in COLUMNS}
            for text, row, is_judged in zip(texts, flat.row.tolist(), judged, strict=True):
                values: Sequence[Any] = [None] * len(COLUMNS)
                if is_judged:
                    text = text or ""
                    values = [
                        start_length(text) > 0,
                        missing(text),
                        refusal(text),
                        num_repeats(text),
                        new_numbers(text, known.get(row, ())),
                        new_names(text, known.get(row, ())),
                    ]
                for name, value in zip(COLUMNS, values, strict=True):
                    found[name].append(value)
            arrays = {n: flat.nested(pa.array(values, COLUMNS[n])) for n, values in found.items()}
            return with_columns(rows, **arrays)

        yield work


@dataclass(frozen=True, kw_only=True)
class StripBoilerplate(MapStage):
    """Removes from texts of `sources` the phrases that they begin with, such as "The image shows".

    The first letter stays a capital if it was one. A text that is nothing else is dropped (`empty`). Counts: `stripped`.
    Scores of a judge are of the text as it was: strip before judging.
    """

    NAME: ClassVar[str] = "hygiene.signals:StripBoilerplate"

    sources: tuple[str, ...] = ("synth",)

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "hygiene.signals", id=pa.string(), texts=TEXTS)
        return inp

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield self._strip

    def _strip(self, rows: pa.Table) -> Out:
        flat = FlatTexts(rows["texts"])
        ours = flat.still_in(self.sources).tolist()
        before = flat.field("text").to_pylist()
        after = [without_start(t) if mine and t else t for t, mine in zip(before, ours, strict=True)]
        changed = [a != b for a, b in zip(after, before, strict=True)]
        emptied = [EMPTY if is_new and not a else None for a, is_new in zip(after, changed, strict=True)]
        rows = flat.replace(rows, text=pa.array(after, pa.string()))
        rows = FlatTexts(rows["texts"]).drop(rows, pa.array(emptied, pa.string()))
        return Out(rows, counts={"stripped": sum(changed)})


def _any_of(patterns: Sequence[str]) -> Callable[[str], bool]:
    compiled = re.compile("|".join(f"(?:{one})" for one in patterns), re.IGNORECASE)
    return lambda text: compiled.search(plain(text)) is not None


def _known(flat: FlatTexts, texts: Sequence[str | None], sources: Sequence[str]) -> dict[int, list[str]]:
    """Returns row -> its texts of these sources."""
    theirs = pc.is_in(flat.field("source"), pa.array(sources, pa.string())).to_pylist()
    found: dict[int, list[str]] = {}
    for text, row, is_known in zip(texts, flat.row.tolist(), theirs, strict=True):
        if is_known and text:
            found.setdefault(row, []).append(text)
    return found
