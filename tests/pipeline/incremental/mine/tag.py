"""Map stages that add to `trace`: with plain parameters, and with parameters of every kind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from mine.spy import note
from vlpipe.pipeline.stage import MapStage, Work

MARK = "0"


@dataclass(frozen=True, kw_only=True)
class Tag(MapStage):
    """One row in 13 is broken: the function raises."""

    VERSION: ClassVar[int] = 1
    ROW_GROUP_ROWS: ClassVar[int] = 4
    MAX_REJECT_RATE: ClassVar[float] = 1.0
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"note"})

    word: str = "a"
    weight: float = 1.0
    note: str = ""

    @contextmanager
    def open(self) -> Iterator[Work]:
        def work(table: pa.Table) -> pa.Table:
            note("Tag", table["id"].to_pylist())
            if any(n % 13 == 7 for n in table["n"].to_pylist()):
                raise ValueError("a broken row")
            said = [f"{text}|T{self.word},{self.weight},{MARK}" for text in table["trace"].to_pylist()]
            return table.set_column(
                table.schema.get_field_index("trace"), "trace", pa.array(said, pa.string())
            )

        yield work
