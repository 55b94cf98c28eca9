"""A filter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from mine.spy import note
from vlpipe.pipeline.shard import Out, Reject
from vlpipe.pipeline.stage import MapStage, Work

MARK = "0"


@dataclass(frozen=True, kw_only=True)
class Every(MapStage):
    """Drops every k-th number."""

    VERSION: ClassVar[int] = 1
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"note"})

    k: int = 4
    note: str = ""

    @contextmanager
    def open(self) -> Iterator[Work]:
        def work(table: pa.Table) -> Out:
            note("Every", table["id"].to_pylist())
            stays = [n % self.k != 0 for n in table["n"].to_pylist()]
            gone = [id_ for id_, stay in zip(table["id"].to_pylist(), stays, strict=True) if not stay]
            kept = table.filter(pa.array(stays, pa.bool_()))
            return Out(kept, [Reject(id_, "filtered", "kth", MARK) for id_ in gone])

        yield work
