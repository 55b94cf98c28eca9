"""Toy stages for the tests of `vlpipe ui` and `show`: pictures, hostile texts, scores, rejects, duplicates, losses."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from PIL import Image

from vlpipe.pipeline.shard import Out, Reject, heavy, ref, with_field
from vlpipe.pipeline.stage import GatherStage, Job, MapStage, SourceStage, Work

TEXT = pa.struct(
    [
        ("text", pa.string()),
        ("source", pa.string()),
        ("score", pa.float32()),
        ("kept", pa.bool_()),
        ("why", pa.string()),
    ]
)
TEXTS = pa.list_(TEXT)
OBJECTS = pa.list_(pa.struct([("box", pa.list_(pa.float32(), 4)), ("label", pa.string())]))

HOSTILE = (
    "<script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "\x1b[2J\x1b[31mred",
    "abc\u202egnp.exe",
    "'\"><svg onload=alert(1)>",
    "javascript:alert(1)",
    "\u05e9\u05dc\u05d5\u05dd \u2066hidden\u2069 zero\u200bwidth",
)


def row_id(n: int) -> str:
    return f"row{n:013d}"


def caption(n: int) -> str:
    return HOSTILE[n] if n < len(HOSTILE) else f"a {('red', 'green', 'blue')[n % 3]} square number {n}"


def picture(n: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (24, 16), ((37 * n) % 256, (91 * n) % 256, 80)).save(buffer, "JPEG")
    return buffer.getvalue()


@dataclass(frozen=True, kw_only=True)
class Pictures(SourceStage):
    """Rows with one web text each, the first ones hostile; heavy pictures; every tenth row is rejected."""

    num_rows: int = 60

    def row_schema(self) -> pa.Schema:
        return pa.schema([("id", pa.string()), ("url", pa.string()), ("texts", TEXTS)])

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return pa.schema([*inp, ("width", pa.int32()), ("objects", OBJECTS), heavy("image", pa.binary())])

    def rows(self) -> Iterator[pa.Table]:
        rows = [
            {
                "id": row_id(n),
                "url": f"http://x.test/{n}.jpg?<script>{n}",
                "texts": [{"text": caption(n), "source": "web"}],
            }
            for n in range(self.num_rows)
        ]
        yield pa.Table.from_pylist(rows, self.row_schema())

    @contextmanager
    def open(self) -> Iterator[Work]:
        def work(table: pa.Table) -> Out:
            made, gone = [], []
            for row in table.to_pylist():
                n = int(row["id"][3:])
                if n % 10 == 9:
                    gone.append(Reject(row["id"], "fault", "truncated", HOSTILE[n % len(HOSTILE)]))
                    continue
                box = {"box": [2.0, 2.0, 14.0, 12.0], "label": HOSTILE[0]}
                made.append({**row, "width": 10 + n, "objects": [box], "image": picture(n)})
            return Out(pa.Table.from_pylist(made, self.schema(table.schema)), gone)

        yield work


def score_of(n: int) -> float:
    return (n * 7 % 20) / 20


@dataclass(frozen=True, kw_only=True)
class Score(MapStage):
    """Adds a synthetic text, scores both, and rejects rows without a kept text."""

    threshold: float = 0.3

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return pa.schema([f for f in inp if f.name != "objects"])

    @contextmanager
    def open(self) -> Iterator[Work]:
        def judged(text: str, source: str, score: float) -> dict[str, Any]:
            kept = score >= self.threshold
            return {
                "text": text,
                "source": source,
                "score": score,
                "kept": kept,
                "why": None if kept else "low",
            }

        def work(table: pa.Table) -> Out:
            made, gone = [], []
            for row in table.drop_columns(["objects"]).to_pylist():
                n = int(row["id"][3:])
                web = judged(row["texts"][0]["text"], "web", score_of(n))
                synth = judged(f"made up {n}", "synth", score_of(n + (3 if n % 2 else 1)))
                if web["kept"] or synth["kept"]:
                    made.append({**row, "texts": [web, synth]})
                else:
                    gone.append(Reject(row["id"], "filtered", "no_text_kept"))
            return Out(pa.Table.from_pylist(made, self.schema(table.schema)), gone)

        yield work


@dataclass(frozen=True, kw_only=True)
class Twins(GatherStage):
    """Every fifth row duplicates the row before it."""

    def schema(self, inp: pa.Schema) -> pa.Schema:
        names = [("id", pa.string()), ("keep", pa.bool_()), ("why", pa.string())]
        return pa.schema([*names, ref("witness", pa.string()), ("similarity", pa.float32())])

    def run(self, job: Job) -> None:
        ids = [i for one in job.inputs for b in one.batches(["id"]) for i in b["id"].to_pylist()]
        rows = [
            {
                "id": id_,
                "keep": n % 5 != 4,
                "why": None if n % 5 != 4 else "near_duplicate",
                "witness": None if n % 5 != 4 else ids[n - 1],
                "similarity": None if n % 5 != 4 else 0.9 + n / 1000,
            }
            for n, id_ in enumerate(ids)
        ]
        job.emit(pa.Table.from_pylist(rows, self.schema(pa.schema([]))))


@dataclass(frozen=True, kw_only=True)
class Training(GatherStage):
    """Losses of ten steps, said and written; `stop`: raises after five."""

    better: float = 0.0
    stop: bool = False

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return pa.schema([("step", pa.int64()), ("name", pa.string()), ("value", pa.float64())])

    def run(self, job: Job) -> None:
        for n in range(1, 11):
            job.say(f"step {n}/10  loss {2 / n:.4g}  lr 0.001  {100 + n} samples/s (loader 3,568)  1 s left")
            if self.stop and n == 5:
                raise RuntimeError("stopped")
        values = [2 / n - self.better for n in range(1, 11)]
        rows = {"step": list(range(1, 11)), "name": ["loss"] * 10, "value": values}
        job.emit(pa.table(rows, self.schema(pa.schema([]))))


@dataclass(frozen=True, kw_only=True)
class Results(GatherStage):
    """Two figures, one of them missing."""

    value: float = 0.75

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return pa.schema([("name", pa.string()), ("value", pa.float64()), ("num_rows", pa.int64())])

    def run(self, job: Job) -> None:
        rows = {"name": ["tr@1", "odd"], "value": [self.value, None], "num_rows": [48, 0]}
        job.emit(pa.table(rows, self.schema(pa.schema([]))))


@dataclass(frozen=True, kw_only=True)
class Crops(MapStage):
    """Two rows of each row."""

    FAN_OUT = True

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return with_field(inp, pa.field("parent", pa.string()))

    @contextmanager
    def open(self) -> Iterator[Work]:
        def work(table: pa.Table) -> pa.Table:
            made = [{**r, "id": f"{r['id']}/{p}", "parent": r["id"]} for r in table.to_pylist() for p in "xy"]
            return pa.Table.from_pylist(made, self.schema(table.schema))

        yield work


PAGES = """
name: looked_at
steps:
  pictures: {use: "look_at:Pictures", shard_rows: 16, max_reject_rate: 1.0}
  scored: {use: "look_at:Score", from: pictures, max_reject_rate: 1.0}
  twins: {use: "look_at:Twins", from: pictures}
  training: {use: "look_at:Training", from: scored}
  results: {use: "look_at:Results", from: scored}
"""
