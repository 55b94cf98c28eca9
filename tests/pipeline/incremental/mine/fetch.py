"""A source: a list of rows, each with bytes that the world gives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from mine.spy import World, note
from vlpipe.pipeline.files import ListFile
from vlpipe.pipeline.shard import Out, Reject, heavy
from vlpipe.pipeline.stage import SourceStage, Work

MARK = "0"


@dataclass(frozen=True, kw_only=True)
class Fetch(SourceStage):
    """Lines "id n" of a file are its rows. A row that the world does not give is a fault: "gone"."""

    VERSION: ClassVar[int] = 1
    ROW_GROUP_ROWS: ClassVar[int] = 3
    MAX_REJECT_RATE: ClassVar[float] = 1.0
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"note"})

    list: ListFile
    site: str
    size: int = 8
    note: str = ""

    def row_schema(self) -> pa.Schema:
        return pa.schema([("id", pa.string()), ("n", pa.int64()), ("trace", pa.string())])

    def rows(self) -> Iterator[pa.Table]:
        pairs = [line.split() for line in Path(self.list.path).read_text().splitlines()]
        for start in range(0, len(pairs), 4):
            some = [(id_, int(n)) for id_, n in pairs[start : start + 4]]
            rows = [{"id": id_, "n": n, "trace": f"{self.site}/{id_}/{n}"} for id_, n in some]
            yield pa.Table.from_pylist(rows, self.row_schema())

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return inp.append(heavy("payload", pa.binary()))

    @contextmanager
    def open(self) -> Iterator[Work]:
        world = World()

        def work(table: pa.Table) -> Out:
            note("Fetch", table["id"].to_pylist())
            rows, gone = [], []
            for row in table.to_pylist():
                seen = world.version_of(self.site, row["id"])
                if seen is None:
                    gone.append(Reject(row["id"], "fault", "gone", self.site))
                    continue
                text = f"{row['trace']}/v{seen}/{MARK}/" + "." * self.size
                rows.append({**row, "payload": text.encode()})
            return Out(pa.Table.from_pylist(rows, self.schema(table.schema)), gone)

        yield work
