"""A fan-out stage: children with a heavy column of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from mine.spy import note
from vlpipe.pipeline.shard import Out, Reject, heavy, need
from vlpipe.pipeline.stage import MapStage, Work

MARK = "0"


@dataclass(frozen=True, kw_only=True)
class Split(MapStage):
    """`parts` children per row; none where n is a multiple of 5."""

    VERSION: ClassVar[int] = 1
    FAN_OUT: ClassVar[bool] = True
    READS_HEAVY: ClassVar[tuple[str, ...]] = ("payload",)
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"note"})

    parts: int = 2
    note: str = ""

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "Split", payload=pa.binary())
        light = [f for f in inp if f.name != "payload"]
        return pa.schema([*light, pa.field("parent", pa.string()), heavy("crop", pa.binary())])

    @contextmanager
    def open(self) -> Iterator[Work]:
        def work(table: pa.Table) -> Out:
            note("Split", table["id"].to_pylist())
            rows, gone = [], []
            for row in table.to_pylist():
                if row["n"] % 5 == 0:
                    gone.append(Reject(row["id"], "filtered", "no_part"))
                    continue
                held = row.pop("payload")
                for part in range(self.parts):
                    child = {"id": f"{row['id']}.{part}", "parent": row["id"], "crop": held + b"%d" % part}
                    rows.append({**row, **child, "trace": f"{row['trace']}|S{part},{MARK}"})
            return Out(pa.Table.from_pylist(rows, self.schema(table.schema)), gone)

        yield work
