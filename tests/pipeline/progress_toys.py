"""Stages that take their time, print, and drop nothing."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from vlpipe.pipeline.shard import Out, Reject
from vlpipe.pipeline.stage import GatherStage, Job, MapStage, SourceStage, Work


@dataclass(frozen=True, kw_only=True)
class Rows(SourceStage):
    num_rows: int = 0
    seconds: float = 0.0  # for each row group

    def row_schema(self) -> pa.Schema:
        return pa.schema([("id", pa.string()), ("n", pa.int64())])

    def rows(self) -> Iterator[pa.Table]:
        ns = list(range(self.num_rows))
        yield pa.table({"id": [f"id{n}" for n in ns], "n": ns}, self.row_schema())

    @contextmanager
    def open(self) -> Iterator[Work]:
        def work(table: pa.Table) -> pa.Table:
            time.sleep(self.seconds)
            return table

        yield work


@dataclass(frozen=True, kw_only=True)
class Slow(MapStage):
    seconds: float = 0.0  # for each row group

    @contextmanager
    def open(self) -> Iterator[Work]:
        def work(table: pa.Table) -> pa.Table:
            time.sleep(self.seconds)
            return table

        yield work


@dataclass(frozen=True, kw_only=True)
class Noisy(MapStage):
    """C code and children write to the file descriptors themselves."""

    @contextmanager
    def open(self) -> Iterator[Work]:
        def work(table: pa.Table) -> pa.Table:
            os.write(1, b"5 %\r50 %\rall of it\n")
            for _ in range(3):
                os.write(2, b"libfoo: \x1b[31mold file\n")
            os.system("echo a child speaks")
            time.sleep(1.5)
            return table

        yield work


@dataclass(frozen=True, kw_only=True)
class Keep(MapStage):
    """Drops the rows below `least`."""

    least: int = 0
    count: bool = False
    FILTERS: ClassVar[bool] = True

    @contextmanager
    def open(self) -> Iterator[Work]:
        def work(table: pa.Table) -> Out:
            gone = table.filter(pc.less(table["n"], self.least))["id"].to_pylist()
            rows = table.filter(pc.greater_equal(table["n"], self.least))
            counts = {"drops:texts": 1} if self.count else {}
            return Out(rows, [Reject(i, "filtered", "small", "") for i in gone], counts=counts)

        yield work


@dataclass(frozen=True, kw_only=True)
class Judge(Keep):
    FILTERS: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class Think(GatherStage):
    seconds: float = 0.0

    def run(self, job: Job) -> None:
        job.say("thinking \x1b[31m")
        warnings.warn("of a library", UserWarning, stacklevel=1)
        time.sleep(self.seconds)
