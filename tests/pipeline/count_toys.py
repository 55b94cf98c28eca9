"""A stage that counts: odd numbers, and what it rejects; some rows break it until a file is there."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from vlpipe.pipeline.errors import RowFault
from vlpipe.pipeline.shard import Out, Reject
from vlpipe.pipeline.stage import GatherStage, Job, MapStage, Work


@dataclass(frozen=True, kw_only=True)
class CountOdd(MapStage):
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"mend"})

    bad: tuple[int, ...] = ()
    mend: str = ""

    @contextmanager
    def open(self) -> Iterator[Work]:
        def work(rows: pa.Table) -> Out:
            numbers = rows["n"].to_pylist()
            if not (self.mend and Path(self.mend).exists()):
                for number in numbers:
                    if number in self.bad:
                        raise RowFault("shaky")
            odd = [n % 2 == 1 for n in numbers]
            small = [n < 2 for n in numbers]
            rejects = [
                Reject(i, "filtered", "small")
                for i, s in zip(rows["id"].to_pylist(), small, strict=True)
                if s
            ]
            counts = {"odd": sum(odd), "fails:small": sum(small)}
            return Out(rows.filter(pa.array([not s for s in small])), rejects, counts=counts)

        yield work


@dataclass(frozen=True, kw_only=True)
class CountCalls(GatherStage):
    """Sums a column into an artifact, after half a second; each call adds the number of its rows to a file."""

    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"file"})

    file: str
    column: str = "n"

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return pa.schema([("n", pa.int64())])

    def run(self, job: Job) -> None:
        numbers = [n for one in job.inputs for n in one.table([self.column])[self.column].to_pylist()]
        time.sleep(0.5)
        with open(self.file, "a") as file:
            file.write(f"{len(numbers)}\n")
        (Path(job.artifacts) / "sum.json").write_text(json.dumps(sum(numbers)))
        job.emit(pa.table({"n": [sum(numbers)]}))
