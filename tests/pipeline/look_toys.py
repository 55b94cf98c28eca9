"""Small stages for the tests of what looks at a root: ids as given, pictures of another step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from vlpipe.pipeline.shard import Out, Reject, heavy, with_field
from vlpipe.pipeline.stage import MapStage, SourceStage, Work


@dataclass(frozen=True, kw_only=True)
class Given(SourceStage):
    """Rows with the ids given, and a heavy column that says what the file `world` says (no key knows of it);
    where that has the word `backwards`, in another order."""

    ids: tuple[str, ...]
    values: tuple[int, ...] = ()
    world: str = ""
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"world"})

    def row_schema(self) -> pa.Schema:
        return pa.schema([("id", pa.string()), ("n", pa.int64())])

    def rows(self) -> Iterator[pa.Table]:
        values = self.values or tuple(range(len(self.ids)))
        yield pa.table({"id": list(self.ids), "n": list(values)}, self.row_schema())

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return inp.append(heavy("picture", pa.binary()))

    @contextmanager
    def open(self) -> Iterator[Work]:
        said = Path(self.world).read_text() if self.world else "as always"

        def work(table: pa.Table) -> pa.Table:
            pictures = [f"{said}: {id_}".encode() for id_ in table["id"].to_pylist()]
            found = table.append_column("picture", pa.array(pictures, pa.binary()))
            return found.take(list(range(found.num_rows))[::-1]) if "backwards" in said else found

        yield work


@dataclass(frozen=True, kw_only=True)
class Look(MapStage):
    """Reads the picture, keeps how long it is."""

    READS_HEAVY: ClassVar[tuple[str, ...]] = ("picture",)

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return with_field(inp, pa.field("said", pa.string()))

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield lambda t: t.drop_columns(["picture"]).append_column("said", t["picture"].cast(pa.string()))


@dataclass(frozen=True, kw_only=True)
class Same(MapStage):
    """Rows as they are."""

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield lambda table: table


@dataclass(frozen=True, kw_only=True)
class Ask(MapStage):
    """Asks the world: a row goes on when the file `up` names its n, now. Its log says so."""

    up: str
    MAX_REJECT_RATE: ClassVar[float] = 1.0
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"up"})

    @contextmanager
    def open(self) -> Iterator[Work]:
        up = Path(self.up).read_text().split()

        def work(table: pa.Table) -> Out:
            rows = table.to_pylist()
            answered = [str(row["n"]) in up for row in rows]
            down = [Reject(r["id"], "fault", "down") for r, a in zip(rows, answered, strict=True) if not a]
            log = [{"id": r["id"], "answered": a} for r, a in zip(rows, answered, strict=True)]
            return Out(table.filter(pa.array(answered)), down, log)

        yield work


@dataclass(frozen=True, kw_only=True)
class Twins(MapStage):
    """Rejects the last row of a shard as the duplicate of all others."""

    @contextmanager
    def open(self) -> Iterator[Work]:
        def work(table: pa.Table) -> Out:
            *others, last = table["id"].to_pylist()
            return Out(table.slice(0, len(others)), [Reject(last, "filtered", "twin", ", ".join(others))])

        yield work
