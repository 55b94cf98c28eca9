"""The stages that `engine.py` times: rows that cost nothing, and a known number of seconds per shard."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from vlpipe.pipeline.shard import Out, Reject
from vlpipe.pipeline.stage import GatherStage, Job, MapStage, SourceStage, Work

ROWS = pa.schema([("id", pa.string()), ("n", pa.int64())])
BATCH_ROWS = 10_000


@dataclass(frozen=True, kw_only=True)
class Numbers(SourceStage):
    """Rows n = 0 .. num_rows - 1."""

    num_rows: int

    def row_schema(self) -> pa.Schema:
        return ROWS

    def rows(self) -> Iterator[pa.Table]:
        for start in range(0, self.num_rows, BATCH_ROWS):
            numbers = range(start, min(start + BATCH_ROWS, self.num_rows))
            yield pa.table({"id": [f"id{n}" for n in numbers], "n": list(numbers)}, ROWS)

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return ROWS

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield lambda table: table


@dataclass(frozen=True, kw_only=True)
class Sleep(MapStage):
    """Returns its rows after `seconds`; a shard of up to 512 rows is one call. `calls`: a file, one byte per row."""

    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"calls"})

    seconds: float = 0.0
    calls: str = ""

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield self.after_a_while

    def after_a_while(self, table: pa.Table) -> pa.Table:
        if self.calls:
            with open(self.calls, "a") as file:
                file.write("x" * table.num_rows)
        time.sleep(self.seconds)
        return table


@dataclass(frozen=True, kw_only=True)
class SleepInActor(Sleep):
    """The same in an actor, as stages with weights run."""

    LOADS_WEIGHTS: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class Quarter(Sleep):
    """Keeps the rows whose n divides by 4."""

    @contextmanager
    def open(self) -> Iterator[Work]:
        def work(table: pa.Table) -> Out:
            rows = self.after_a_while(table)
            keep = pc.equal(pc.bit_wise_and(rows["n"], 3), 0)
            gone = rows.filter(pc.invert(keep))["id"].to_pylist()
            return Out(rows.filter(keep), [Reject(id_, "filtered", "not_fourth") for id_ in gone])

        yield work


@dataclass(frozen=True, kw_only=True)
class Gather(GatherStage):
    """Takes `seconds`, whatever it reads, and emits one row."""

    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"calls"})

    seconds: float = 0.0
    calls: str = ""

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return ROWS

    def run(self, job: Job) -> None:
        time.sleep(self.seconds)
        job.emit(pa.table({"id": ["id0"], "n": [0]}, ROWS))
