"""Small stages with texts, urls, children and decisions, for the tests of `why`, `diff` and `export`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from vlpipe.pipeline.shard import Out, Reject, need, with_field
from vlpipe.pipeline.stage import GatherStage, Job, MapStage, SourceStage, Work

TEXTS = pa.list_(pa.struct([("text", pa.string()), ("score", pa.float32()), ("kept", pa.bool_())]))


def page_id(n: int) -> str:
    """Two ids share their first 12 characters, as ids of 64 sometimes share 8."""
    return f"page{n // 2:08d}-{'ab'[n % 2]}"


@dataclass(frozen=True, kw_only=True)
class Pages(SourceStage):
    """Rows with a url (one of them twice) and one text each."""

    num_rows: int = 10
    word: str = "text"

    def row_schema(self) -> pa.Schema:
        return pa.schema([("id", pa.string()), ("url", pa.string()), ("texts", TEXTS)])

    def rows(self) -> Iterator[pa.Table]:
        rows = [
            {
                "id": page_id(n),
                "url": f"http://x.test/{min(n, self.num_rows - 2)}.jpg",
                "texts": [{"text": f"{self.word} {n}", "score": None, "kept": None}],
            }
            for n in range(self.num_rows)
        ]
        yield pa.Table.from_pylist(rows, self.row_schema())

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield lambda table: table


@dataclass(frozen=True, kw_only=True)
class Judge(MapStage):
    """Adds a text, scores the first one, and drops the column `url`."""

    threshold: float = 0.5

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "Judge", texts=TEXTS)
        return pa.schema([f for f in inp if f.name != "url"])

    @contextmanager
    def open(self) -> Iterator[Work]:
        def judged(texts: list[dict[str, object]]) -> list[dict[str, object]]:
            score = len(str(texts[0]["text"])) / 8
            first = {**texts[0], "score": score, "kept": score >= self.threshold}
            return [first, {"text": "made up", "score": None, "kept": None}]

        def work(table: pa.Table) -> pa.Table:
            texts = pa.array([judged(t) for t in table["texts"].to_pylist()], TEXTS)
            return table.drop_columns(["url"]).set_column(1, "texts", texts)

        yield work


@dataclass(frozen=True, kw_only=True)
class Forgets(MapStage):
    """Rejects one row; once the file `mend` is there it returns neither the row nor a reject."""

    mend: str = ""
    MAX_REJECT_RATE: ClassVar[float] = 1.0
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"mend"})

    @contextmanager
    def open(self) -> Iterator[Work]:
        def work(table: pa.Table) -> Out:
            forgets = Path(self.mend).exists()
            rejects = [] if forgets else [Reject(table["id"][0].as_py(), "fault", "odd")]
            return Out(table.slice(1), rejects)

        yield work


@dataclass(frozen=True, kw_only=True)
class Split(MapStage):
    """Two children per row, none of the last one, which is rejected."""

    FAN_OUT: ClassVar[bool] = True
    last: str = ""

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return with_field(inp, pa.field("parent", pa.string()))

    @contextmanager
    def open(self) -> Iterator[Work]:
        def work(table: pa.Table) -> Out:
            rows = [r for r in table.to_pylist() if r["id"] != self.last]
            made = [{**r, "id": f"{r['id']}/{part}", "parent": r["id"]} for r in rows for part in "xy"]
            gone = [Reject(self.last, "filtered", "no_scene")] if len(rows) < table.num_rows else []
            return Out(pa.Table.from_pylist(made, self.schema(table.schema)), gone)

        yield work


@dataclass(frozen=True, kw_only=True)
class Decide(GatherStage):
    """One decision per row: every other one goes."""

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return pa.schema([("id", pa.string()), ("keep", pa.bool_()), ("witness", pa.string())])

    def run(self, job: Job) -> None:
        ids = [i for one in job.inputs for b in one.batches(["id"]) for i in b["id"].to_pylist()]
        rows = [
            {"id": i, "keep": n % 2 == 0, "witness": None if n % 2 == 0 else ids[n - 1]}
            for n, i in enumerate(ids)
        ]
        job.emit(pa.Table.from_pylist(rows, self.schema(pa.schema([]))))


@dataclass(frozen=True, kw_only=True)
class Losses(GatherStage):
    """Rows without an id; one value is never a number."""

    better: float = 0.0

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return pa.schema([("step", pa.int64()), ("name", pa.string()), ("value", pa.float64())])

    def run(self, job: Job) -> None:
        values = [1.0, float("nan"), 0.5 - self.better]
        rows = {"step": [0, 1, 2], "name": ["loss"] * 3, "value": values}
        job.emit(pa.table(rows, self.schema(pa.schema([]))))
