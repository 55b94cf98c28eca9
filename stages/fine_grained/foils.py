"""Makes tests of a right and a wrong caption from human captions, for images without published tests.

FOIL it! (https://arxiv.org/abs/1705.01359): the wrong caption has one word replaced by a similar one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa

from vlpipe.pipeline.shard import need, with_field
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.common.batches import seed_of
from vlpipe.stages.common.row import TEXTS
from vlpipe.stages.common.scores import with_columns
from vlpipe.stages.fine_grained.exchange import Exchange
from vlpipe.stages.fine_grained.wrong_words import exchange_problems
from vlpipe.stages.lists.sugarcrepe import CHOICES


@dataclass(frozen=True, kw_only=True)
class Foils(MapStage):
    """Adds `choices`: for each attribute that a caption of the image says, one caption, and the same with another value.

    attributes: as in `fine_grained.wrong_words`. A value that any caption of the image says is never put in. source:
    `source` of the captions. Caption and value depend only on `seed` and the row's id and captions. The id of a choice is
    ATTRIBUTE/ID, its kind the attribute.
    """

    NAME: ClassVar[str] = "fine_grained.foils:Foils"
    ORDERED: ClassVar[frozenset[str]] = frozenset({"attributes"})

    attributes: dict[str, dict[str, list[str]]]
    source: str = "human"
    seed: int = 0

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "fine_grained.foils", id=pa.string(), texts=TEXTS)
        return with_field(inp, pa.field("choices", CHOICES))

    def preflight(self) -> list[str]:
        return exchange_problems(self.attributes)

    @contextmanager
    def open(self) -> Iterator[Work]:
        exchange = Exchange(self.attributes)

        def work(rows: pa.Table) -> pa.Table:
            choices = [
                self._choices(exchange, id_, [t["text"] for t in texts or () if t["source"] == self.source])
                for id_, texts in zip(rows["id"].to_pylist(), rows["texts"].to_pylist(), strict=True)
            ]
            return with_columns(rows, choices=pa.array(choices, CHOICES))

        yield work

    def _choices(self, exchange: Exchange, id_: str, captions: Sequence[str]) -> list[dict[str, str]]:
        rng = np.random.default_rng(seed_of("foils", self.seed, id_))
        said = [exchange.said(caption) for caption in captions]
        found = []
        for attribute in self.attributes:
            about = [caption for caption, one in zip(captions, said, strict=True) if attribute in one]
            if about:
                right = about[int(rng.integers(len(about)))]
                true = {value for one in said for value in one.get(attribute, ())}
                wrong = exchange.exchanged(right, attribute, rng, true)
                if wrong is not None:
                    found.append(
                        {"id": f"{attribute}/{id_}", "kind": attribute, "right": right, "wrong": wrong}
                    )
        return found
