"""A gather stage that emits rows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from mine.spy import note
from vlpipe.pipeline.shard import Reject
from vlpipe.pipeline.stage import GatherStage, Job

MARK = "0"
LIGHT = [("id", pa.string()), ("n", pa.int64()), ("trace", pa.string())]


@dataclass(frozen=True, kw_only=True)
class Rank(GatherStage):
    """All rows in an order of its own; a multiple of 7 is left out."""

    VERSION: ClassVar[int] = 1
    CONSERVES: ClassVar[bool] = True
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"note"})

    salt: str = "s"
    note: str = ""

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return pa.schema(LIGHT)

    def run(self, job: Job) -> None:
        rows = [
            row for one in job.inputs for b in one.batches([n for n, _ in LIGHT]) for row in b.to_pylist()
        ]
        note("Rank", [row["id"] for row in rows])
        rows.sort(key=lambda row: hashlib.sha256(f"{self.salt}{row['id']}".encode()).hexdigest())
        gone = [Reject(row["id"], "filtered", "seventh") for row in rows if row["n"] % 7 == 0]
        kept = [
            {**row, "trace": f"{row['trace']}|R{at},{MARK}"} for at, row in enumerate(rows) if row["n"] % 7
        ]
        job.reject(gone)
        for start in range(0, len(kept), 5):
            job.emit(pa.Table.from_pylist(kept[start : start + 5], self.schema(pa.schema([]))))
