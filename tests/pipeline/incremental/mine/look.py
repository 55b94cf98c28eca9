"""Stages that read the heavy column another step wrote."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from mine.spy import note
from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import MapStage, Work

MARK = "0"


@dataclass(frozen=True, kw_only=True)
class Look(MapStage):
    """What the payload says goes into `trace`, in brackets."""

    VERSION: ClassVar[int] = 1
    READS_HEAVY: ClassVar[tuple[str, ...]] = ("payload",)
    LOADS_WEIGHTS: ClassVar[bool] = True
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"note"})

    length: int = 60
    note: str = ""

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "Look", payload=pa.binary())
        return inp

    @contextmanager
    def open(self) -> Iterator[Work]:
        def work(table: pa.Table) -> pa.Table:
            note("Look", table["id"].to_pylist())
            pairs = zip(table["trace"].to_pylist(), table["payload"].to_pylist(), strict=True)
            said = [f"{text}|L[{held.decode()[: self.length]}]{MARK}" for text, held in pairs]
            return table.set_column(
                table.schema.get_field_index("trace"), "trace", pa.array(said, pa.string())
            )

        yield work
