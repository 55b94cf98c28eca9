"""Stages whose work is counted and whose time is known."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from vlpipe.pipeline.shard import Out, Reject, with_field
from vlpipe.pipeline.stage import GatherStage, Job, MapStage, Stage, Work


def note(path: str, table: pa.Table) -> None:
    with open(path, "a") as file:
        file.writelines(f"{one}\n" for one in table["id"].to_pylist())


@dataclass(frozen=True, kw_only=True)
class Caption(MapStage):
    """Takes `seconds` per row and counts two tokens for each. calls: a file with a line per row worked on."""

    seconds: float
    calls: str
    column: str = "caption"
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"seconds", "calls"})

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return with_field(inp, pa.field(self.column, pa.string()))

    @contextmanager
    def open(self) -> Iterator[Work]:
        def work(table: pa.Table) -> Out:
            note(self.calls, table)
            time.sleep(self.seconds * table.num_rows)
            made = table.append_column(self.column, [[f"number {n}" for n in table["n"].to_pylist()]])
            return Out(made, [], counts={"tokens_out": 2 * table.num_rows})

        yield work


@dataclass(frozen=True, kw_only=True)
class Half(MapStage):
    """Keeps the rows with an even number."""

    FILTERS: ClassVar[bool] = True

    @contextmanager
    def open(self) -> Iterator[Work]:
        def work(table: pa.Table) -> Out:
            even = pa.array([n % 2 == 0 for n in table["n"].to_pylist()])
            odd = [i for i, n in zip(*(table[c].to_pylist() for c in ("id", "n")), strict=True) if n % 2]
            return Out(table.filter(even), [Reject(one, "filtered", "odd") for one in odd])

        yield work


@dataclass(frozen=True, kw_only=True)
class Steps(GatherStage):
    """Computes `steps` steps of `per_step` seconds each, after `start_s`; or as many epochs of one step per row."""

    steps: int | None = None
    epochs: int | None = None
    per_step: float = 0.005
    start_s: float = 0.1
    ROWS_ARE: ClassVar[str] = "steps"

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return pa.schema([("step", pa.int64())])

    def sampled(self) -> Stage:
        return dataclasses.replace(self, steps=4, epochs=None)

    def num_steps_for(self, num_rows: int) -> int | None:
        return self.steps if self.steps is not None else num_rows * (self.epochs or 1)

    def run(self, job: Job) -> None:
        time.sleep(self.start_s)
        num = self.num_steps_for(sum(one.num_rows for one in job.inputs)) or 0
        began = time.monotonic()
        for _ in range(num):
            time.sleep(self.per_step)
        job.spent["per_step"] = (time.monotonic() - began) / num
        job.emit(pa.table({"step": list(range(num))}))
