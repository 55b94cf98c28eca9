"""A map stage with an Enum, a Path, and a dataclass in a dataclass among its parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from mine.spy import note
from vlpipe.pipeline.stage import MapStage, Work

MARK = "0"


class Color(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, kw_only=True)
class Inner:
    names: tuple[str, ...] = ("x",)
    by: dict[str, float] = field(default_factory=lambda: {"one": 1.0})


@dataclass(frozen=True, kw_only=True)
class Opts:
    deep: int = 1
    inner: Inner = Inner()


@dataclass(frozen=True, kw_only=True)
class Fancy(MapStage):
    VERSION: ClassVar[int] = 1
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"note"})

    color: Color = Color.RED
    where: Path = Path("here")
    opts: Opts = Opts()
    note: str = ""

    @contextmanager
    def open(self) -> Iterator[Work]:
        inner = self.opts.inner
        mine = f"|F{self.color.value},{self.where},{self.opts.deep},{inner.names},{sorted(inner.by.items())},{MARK}"

        def work(table: pa.Table) -> pa.Table:
            note("Fancy", table["id"].to_pylist())
            said = [text + mine for text in table["trace"].to_pylist()]
            return table.set_column(
                table.schema.get_field_index("trace"), "trace", pa.array(said, pa.string())
            )

        yield work
