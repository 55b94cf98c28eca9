"""Stages that return odd things, or break on single rows; for tests of what the engine makes of them."""

from __future__ import annotations

import hashlib
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from vlpipe.pipeline.errors import RowFault
from vlpipe.pipeline.shard import Out, Reject, heavy, with_field
from vlpipe.pipeline.stage import GatherStage, Job, MapStage, SourceStage, Work

N = pa.schema([("id", pa.string()), ("n", pa.int64())])


def table(ns: list[int]) -> pa.Table:
    return pa.table({"id": [f"id{n}" for n in ns], "n": ns}, N)


@dataclass(frozen=True, kw_only=True)
class Ids(SourceStage):
    """Lists rows with these ids, `per_table` in a table; None is null."""

    ids: tuple[str | None, ...]
    per_table: int = 100

    def row_schema(self) -> pa.Schema:
        return N

    def rows(self) -> Iterator[pa.Table]:
        for start in range(0, len(self.ids), self.per_table):
            part = list(self.ids[start : start + self.per_table])
            yield pa.table({"id": part, "n": range(start, start + len(part))}, N)

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield lambda rows: rows


@dataclass(frozen=True, kw_only=True)
class Column(MapStage):
    """Adds the column `x` as declared in `type`; its value is 0, or for rows in `odd` that of VALUES[what]."""

    what: str
    type: str = "float64"
    odd: tuple[int, ...] = ()

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return with_field(inp, pa.field("x", getattr(pa, self.type)()))

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield lambda rows: rows.append_column(
            "x", COLUMNS[self.what]([n in self.odd for n in rows["n"].to_pylist()])
        )


def _invalid_text(odd: list[bool]) -> pa.Array:
    """Text whose bytes are no UTF-8, as only a careless C library makes it."""
    data = b"".join(b"\xff" if one else b"a" for one in odd)
    offsets = pa.array(range(len(odd) + 1), pa.int32()).buffers()[1]
    return pa.Array.from_buffers(pa.string(), len(odd), [None, offsets, pa.py_buffer(data)])


COLUMNS: dict[str, Callable[[list[bool]], Any]] = {
    "inf": lambda odd: pa.array([float("inf") if one else 0.0 for one in odd]),
    "minus_inf": lambda odd: pa.array([float("-inf") if one else 0.0 for one in odd]),
    "nan": lambda odd: pa.array([float("nan") if one else 0.0 for one in odd]),
    "half": lambda odd: pa.array(np.array([np.inf if one else 0.5 for one in odd], np.float16)),
    "text": lambda odd: pa.array(["many" if one else "0" for one in odd]),
    "large": lambda odd: pa.array([2**40 if one else 0 for one in odd]),
    "fraction": lambda odd: pa.array([0.5 if one else 0.0 for one in odd]),
    "invalid": _invalid_text,
    "surrogate": lambda odd: pa.array(["\udcff" if one else "a" for one in odd]),
    "views": lambda odd: pa.array(["a" for _ in odd], pa.string_view()),
    "dictionary": lambda odd: pa.array(["a" for _ in odd]).dictionary_encode(),
    "large_string": lambda odd: pa.array(["a" for _ in odd], pa.large_string()),
}


@dataclass(frozen=True, kw_only=True)
class Raises(MapStage):
    """Raises on rows in `bad`, what RAISES[what] raises; notes the rows it was asked for in `calls`."""

    what: str
    bad: tuple[int, ...] = ()
    calls: str = ""
    seconds: float = 0.0
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"calls", "seconds"})

    @contextmanager
    def open(self) -> Iterator[Work]:
        def work(rows: pa.Table) -> Any:
            if self.calls:
                with Path(self.calls).open("a") as file:
                    file.writelines(f"{n}\n" for n in rows["n"].to_pylist())
            for n in rows["n"].to_pylist():
                if n in self.bad:
                    return RAISES[self.what](rows, self.seconds)
            return rows

        yield work


@dataclass(frozen=True, kw_only=True)
class RaisesInActor(Raises):
    LOADS_WEIGHTS: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class AsksWorld(Raises):
    OBSERVES_WORLD: ClassVar[bool] = True


class Odd(Exception):
    """Cannot be pickled, and has no text."""

    def __init__(self, needed: object, *, also: object) -> None:
        self.held = lambda: needed
        super().__init__(needed, also)

    def __str__(self) -> str:
        raise RuntimeError("no text")


class PanicException(BaseException):
    """As the binding of a Rust library raises it."""


def _raise(error: BaseException) -> Any:
    raise error


RAISES: dict[str, Callable[[pa.Table, float], Any]] = {
    "key": lambda rows, _: {}["colour"],
    "surrogate": lambda *_: _raise(ValueError("no such file: caf\udce9.jpg")),
    "control": lambda *_: _raise(RowFault("odd\x00code", "a\x1b[31m\x00\ud800b")),
    "long": lambda *_: _raise(ValueError("x" * 1_000_000)),
    "no_text": lambda *_: _raise(Odd(1, also=2)),
    "exit": lambda *_: sys.exit(3),
    "panic": lambda *_: _raise(PanicException("index out of range")),
    "recursion": lambda *_: _raise(RecursionError("maximum recursion depth exceeded")),
    "sleeps": lambda rows, seconds: (time.sleep(seconds), rows)[1],
    "nothing": lambda *_: None,
    "column_lost": lambda rows, _: rows.select(["id"]),
    "counts": lambda rows, _: Out(rows, counts={"n": float("nan")}),  # type: ignore[dict-item]
    "reject_of_none": lambda rows, _: Out(rows.slice(1), [Reject(None, "fault", "odd")]),  # type: ignore[arg-type]
}


@dataclass(frozen=True, kw_only=True)
class Says(MapStage):
    """Rejects, counts and log lines with odd values; prints, logs and warns."""

    @contextmanager
    def open(self) -> Iterator[Work]:
        def work(rows: pa.Table) -> Out:
            print("printed \x1b[31m of", rows["id"][0])
            logging.getLogger("odd").warning("logged")
            warnings.warn("a library warns", stacklevel=1)
            ids = rows["id"].to_pylist()
            line = {"id": ids[0], "inf": float("inf"), "text": "\udcff", "n": np.int64(3), 1: {2.5, b"x"}}
            rejects = [Reject(ids[0], "filtered", "odd\ud800", "\x00\udcff" + "y" * 100_000)]
            return Out(rows.slice(1), rejects, [line], {"rows": np.int64(1), "\udcff": True})

        yield work


@dataclass(frozen=True, kw_only=True)
class Children(MapStage):
    """Two children per row; their ids by `how`."""

    how: str = "right"
    FAN_OUT: ClassVar[bool] = True

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return pa.schema([("id", pa.string()), ("parent", pa.string()), ("x", pa.int32())])

    @contextmanager
    def open(self) -> Iterator[Work]:
        def work(rows: pa.Table) -> pa.Table:
            made = [(one, k) for one in rows.to_pylist() for k in range(2)]
            return pa.table(
                {
                    "id": [CHILD_IDS[self.how](one["id"], k) for one, k in made],
                    "parent": [None if k and self.how == "orphan" else one["id"] for one, k in made],
                    "x": [2**40 if one["n"] == 3 and k and self.how == "overflow" else 1 for one, k in made],
                }
            )

        yield work


CHILD_IDS: dict[str, Callable[[str, int], str | None]] = {
    "right": lambda id_, k: f"{id_}-{k}",
    "orphan": lambda id_, k: f"{id_}-{k}",
    "overflow": lambda id_, k: f"{id_}-{k}",
    "twice": lambda id_, k: id_,
    "across": lambda id_, k: f"{k}-{id_ == 'id0'}",
    "none": lambda id_, k: None if k else id_,
    "empty": lambda id_, k: "" if k else id_,
}


@dataclass(frozen=True, kw_only=True)
class Emits(GatherStage):
    """Emits EMITS[what] and nothing else; rejects `num_rejects` rows that are not there."""

    what: str
    num_rejects: int = 0
    odd_reject: bool = False  # a reject without an id

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return N

    def run(self, job: Job) -> None:
        for one in EMITS[self.what]():
            job.emit(one)
        ids: list[Any] = [None if self.odd_reject else f"r{k}" for k in range(self.num_rejects)]
        job.reject([Reject(id_, "fault", "odd", "\udcff") for id_ in ids])


def _chunked() -> pa.Table:
    return pa.concat_tables([table([0]), table([1]).slice(0, 0), table([1, 2])])


EMITS: dict[str, Callable[[], list[Any]]] = {
    "plain": lambda: [table([0, 1, 2])],
    "one_by_one": lambda: [table([n]) for n in range(3)],
    "no_rows": lambda: [pa.table({}), N.empty_table(), table([0, 1, 2])],
    "other_order": lambda: [table([0, 1, 2]).select(["n", "id"])],
    "more_columns": lambda: [table([0, 1, 2]).append_column("more", [["x"] * 3])],
    "chunked": lambda: [_chunked()],
    "dictionary": lambda: [table([0, 1, 2]).set_column(0, "id", table([0, 1, 2])["id"].dictionary_encode())],
    "large_string": lambda: [
        table([0, 1, 2]).set_column(0, "id", table([0, 1, 2])["id"].cast(pa.large_string()))
    ],
    "view": lambda: [table([0, 1, 2]).set_column(0, "id", table([0, 1, 2])["id"].cast(pa.string_view()))],
    "small_ints": lambda: [table([0, 1, 2]).set_column(1, "n", table([0, 1, 2])["n"].cast(pa.int8()))],
    "batch": lambda: table([0, 1, 2]).to_batches(),
    "missing": lambda: [table([0]).select(["id"])],
    "no_table": lambda: [[{"id": "id0", "n": 0}]],
    "twice": lambda: [pa.table([["id0"], [0], [1]], names=["id", "n", "n"])],
    "text": lambda: [pa.table({"id": ["id0"], "n": ["many"]})],
    "invalid": lambda: [pa.table([_invalid_text([False, True]), [0, 1]], N)],
    "same_ids": lambda: [table([0, 1, 0, 1, 0])],
    "null_id": lambda: [pa.table({"id": ["a", None], "n": [0, 1]}, N)],
}


@dataclass(frozen=True, kw_only=True)
class Pictures(SourceStage):
    """`num_rows` rows with a heavy column of `num_bytes` random bytes each."""

    num_rows: int
    num_bytes: int

    def row_schema(self) -> pa.Schema:
        return N

    def rows(self) -> Iterator[pa.Table]:
        yield table(list(range(self.num_rows)))

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return inp.append(heavy("payload", pa.binary()))

    @contextmanager
    def open(self) -> Iterator[Work]:
        def work(rows: pa.Table) -> pa.Table:
            made = [np.random.default_rng(n).bytes(self.num_bytes) for n in rows["n"].to_pylist()]
            return rows.append_column("payload", pa.array(made, pa.binary()))

        yield work


@dataclass(frozen=True, kw_only=True)
class Wrong(SourceStage):
    """Images with their sha256; that of row 1 is another's."""

    num_rows: int

    def row_schema(self) -> pa.Schema:
        return N

    def rows(self) -> Iterator[pa.Table]:
        yield table(list(range(self.num_rows)))

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return inp.append(pa.field("sha256", pa.string())).append(heavy("image", pa.binary()))

    @contextmanager
    def open(self) -> Iterator[Work]:
        def work(rows: pa.Table) -> pa.Table:
            images = [bytes([n]) for n in rows["n"].to_pylist()]
            digests = [hashlib.sha256(b"other" if one == b"\x01" else one).hexdigest() for one in images]
            return rows.append_column("sha256", [digests]).append_column("image", [images])

        yield work
