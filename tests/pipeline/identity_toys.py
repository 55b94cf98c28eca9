"""Stages whose rows depend on what a test edits: files, the world, parameters of odd types."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from enum import Enum
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from vlpipe.pipeline.errors import RowFault
from vlpipe.pipeline.files import File, ListFile
from vlpipe.pipeline.shard import heavy, with_field
from vlpipe.pipeline.stage import GatherStage, Job, MapStage, SourceStage, Work


def note(path: str, num_rows: int) -> None:
    """A file that counts rows: a byte for each."""
    if path:
        with open(path, "a") as file:
            file.write("x" * num_rows)


@dataclass(frozen=True, kw_only=True)
class Fetch(SourceStage):
    """The words of `list`; `picture` is what the world (a file) says of them. A word in the file `bad` fails."""

    list: ListFile
    world: str = ""
    bad: str = ""
    calls: str = ""
    MAX_REJECT_RATE: ClassVar[float] = 1.0
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"world", "bad", "calls"})

    def row_schema(self) -> pa.Schema:
        return pa.schema([("id", pa.string())])

    def rows(self) -> Iterator[pa.Table]:
        yield pa.table({"id": Path(self.list.path).read_text().split()}, self.row_schema())

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return inp.append(heavy("picture", pa.string()))

    @contextmanager
    def open(self) -> Iterator[Work]:
        def work(rows: pa.Table) -> pa.Table:
            said = Path(self.world).read_text() if self.world else "picture"
            bad = Path(self.bad).read_text().split() if self.bad else []
            for id_ in rows["id"].to_pylist():
                if id_ in bad:
                    raise RowFault("gone", id_)
            note(self.calls, rows.num_rows)
            return rows.append_column("picture", [[f"{said} of {i}" for i in rows["id"].to_pylist()]])

        yield work


@dataclass(frozen=True, kw_only=True)
class Light(MapStage):
    """Adds the length of the id."""

    calls: str = ""
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"calls"})

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return with_field(inp, pa.field("length", pa.int64()))

    @contextmanager
    def open(self) -> Iterator[Work]:
        def work(rows: pa.Table) -> pa.Table:
            note(self.calls, rows.num_rows)
            if "length" in rows.schema.names:
                return rows
            return rows.append_column("length", pc.utf8_length(rows["id"]).cast(pa.int64()))

        yield work


@dataclass(frozen=True, kw_only=True)
class Describe(MapStage):
    """What the picture says."""

    READS_HEAVY: ClassVar[tuple[str, ...]] = ("picture",)

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return with_field(inp, pa.field("said", pa.string()))

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield lambda rows: rows.append_column("said", rows["picture"])


@dataclass(frozen=True, kw_only=True)
class Write(GatherStage):
    """Puts `text` into an artifact; counts its runs."""

    text: str
    calls: str = ""
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"calls"})

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return pa.schema([])

    def run(self, job: Job) -> None:
        note(self.calls, 1)
        (Path(job.artifacts) / "text.txt").write_text(self.text)


@dataclass(frozen=True, kw_only=True)
class ByName(GatherStage):
    """Emits the first text of each input by the name of its step."""

    def names_in_key(self, names: Sequence[str]) -> Sequence[str]:
        return names

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return pa.schema([("name", pa.string()), ("text", pa.string())])

    def run(self, job: Job) -> None:
        rows = [{"name": data.name, "text": data.table()["text"][0].as_py()} for data in job.inputs]
        job.emit(pa.Table.from_pylist(rows))


@dataclass(frozen=True, kw_only=True)
class Says(GatherStage):
    text: str

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return pa.schema([("text", pa.string())])

    def run(self, job: Job) -> None:
        job.emit(pa.table({"text": [self.text]}))


@dataclass(frozen=True, kw_only=True)
class Pair(MapStage):
    """Writes down what its two files say, each under its own name."""

    teacher: File
    student: File

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return with_field(inp, pa.field("pair", pa.string()))

    @contextmanager
    def open(self) -> Iterator[Work]:
        said = [_text(file) for file in (self.teacher, self.student)]
        text = "teacher={} student={}".format(*said)
        yield lambda rows: rows.append_column("pair", [[text] * rows.num_rows])


def _text(file: File) -> str:
    path = Path(file.path)
    return (path / "text.txt" if path.is_dir() else path).read_text()


class Color(Enum):
    RED = "red"


@dataclass(frozen=True, kw_only=True)
class Odd(MapStage):
    """Parameters whose types are not JSON's."""

    color: Color = Color.RED
    folder: Path = Path("a/b")
    day: date = date(2026, 1, 2)
    limit: float = float("inf")
    names: frozenset[str] = frozenset({"b", "a"})

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield lambda rows: rows


@dataclass(frozen=True, kw_only=True)
class Named(Light):
    """A stage with a name of its own."""

    NAME: ClassVar[str] = "the-length"


@dataclass(frozen=True, kw_only=True)
class Moved(Light):
    """The same stage after it moved: another class path, the same name."""

    NAME: ClassVar[str] = "the-length"


@dataclass(frozen=True, kw_only=True)
class Child(Named):
    """A user's own variant."""


@dataclass(frozen=True, kw_only=True)
class Names(MapStage):
    """Names the keys of a mapping in their order."""

    ORDERED: ClassVar[frozenset[str]] = frozenset({"shares"})
    shares: dict[str, dict[str, int]]

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return with_field(inp, pa.field("said", pa.string()))

    @contextmanager
    def open(self) -> Iterator[Work]:
        said = " ".join(f"{name}:{'+'.join(more)}" for name, more in self.shares.items())
        yield lambda rows: rows.append_column("said", [[said] * rows.num_rows])
