"""Texts that are wrong in one attribute: for training, to see if an evaluation tells them from right ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.shard import Out, need
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.common.batches import seed_of, with_texts
from vlpipe.stages.common.row import TEXTS
from vlpipe.stages.fine_grained.exchange import Exchange

Said = Mapping[str, Sequence[str]]  # attribute -> values that a text says


@dataclass(frozen=True, kw_only=True)
class WrongWords(MapStage):
    """Replaces a value of one attribute in each kept text of `sources` by another: `red` by `blue`, `disc` by `square`.

    attributes: name -> value -> the words that say it in a text ([] for the value itself). The attribute is drawn from
    those that the text says, the new value from those that no text of the row says. share: fraction of the texts that are
    changed; which ones, and how, depends only on `seed` and the row's id and texts. Texts without an attribute that can be
    changed stay as they are. Counts: `changed:ATTRIBUTE`, `nothing_to_change`.
    """

    NAME: ClassVar[str] = "fine_grained.wrong_words:WrongWords"
    ORDERED: ClassVar[frozenset[str]] = frozenset({"attributes"})

    attributes: dict[str, dict[str, list[str]]]
    share: Annotated[float, Field(ge=0, le=1)] = 1.0
    sources: tuple[str, ...] = ("web",)
    seed: int = 0

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "fine_grained.wrong_words", id=pa.string(), texts=TEXTS)
        return inp

    def preflight(self) -> list[str]:
        return exchange_problems(self.attributes)

    @contextmanager
    def open(self) -> Iterator[Work]:
        exchange = Exchange(self.attributes)

        def work(rows: pa.Table) -> Out:
            counts: Counter[str] = Counter()
            texts = [
                self._changed(exchange, id_, some or [], counts)
                for id_, some in zip(rows["id"].to_pylist(), rows["texts"].to_pylist(), strict=True)
            ]
            return Out(with_texts(rows, texts), counts=counts)

        yield work

    def _changed(
        self, exchange: Exchange, id_: str, texts: list[dict[str, Any]], counts: Counter[str]
    ) -> list[dict[str, Any]]:
        rng = np.random.default_rng(seed_of("wrong_words", self.seed, id_))
        true = [exchange.said(entry["text"]) for entry in texts]
        found = []
        for entry, said in zip(texts, true, strict=True):
            drawn = rng.random() < self.share
            if drawn and entry["source"] in self.sources and entry["kept"] is not False:
                attribute, wrong = _wrong(exchange, entry["text"], said, true, rng)
                counts[f"changed:{attribute}" if attribute else "nothing_to_change"] += 1
                entry = {**entry, "text": wrong}
            found.append(entry)
        return found


def _wrong(
    exchange: Exchange, text: str, said: Said, of_row: Sequence[Said], rng: np.random.Generator
) -> tuple[str, str]:
    """Returns (attribute, wrong text), or ("", the text) if no attribute can be changed. of_row: `said` of all texts."""
    for attribute in rng.permutation(list(said)).tolist():
        taken = {value for other in of_row for value in other.get(attribute, ())}
        wrong = exchange.exchanged(text, attribute, rng, taken)
        if wrong is not None:
            return attribute, wrong
    return "", text


def exchange_problems(attributes: dict[str, dict[str, list[str]]]) -> list[str]:
    """Returns the error text, for `Stage.preflight`, of attributes that `Exchange` refuses."""
    try:
        Exchange(attributes)
    except ValueError as error:
        return [f"attributes: {error}"]
    return []
