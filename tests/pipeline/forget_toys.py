"""A chain with everything a row leaves behind: logs, decisions with witnesses, edges, rejects that name others, texts that
twins took, a model, an export."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from vlpipe.pipeline.files import File, ListFile
from vlpipe.pipeline.shard import Out, Reject, ShardWriter, heavy, read_batches, ref
from vlpipe.pipeline.stage import GatherStage, Job, MapStage, SourceStage, Work

# Row n has a url on its own host; n and n + 1 are twins for even n; every fifth is dead.
CHAIN = """
name: forgets
steps:
  pages: {use: "forget_toys:Pages", list: LIST, shard_rows: 6}
  twins: {use: "forget_toys:Twins", from: pages}
  unique: {use: "forget_toys:Unique", from: pages, decisions: {from: twins, path: decisions.parquet}}
  model: {use: "forget_toys:Model", from: unique}
  tuned: {use: "forget_toys:Tuned", init: {from: model}}
  scored: {use: "forget_toys:Scored", from: unique, model: {from: tuned, path: weights.txt}}
"""


EXPORT = '  packed: {use: "forget_toys:Packed", from: unique}\n'
ENTRIES = pa.list_(pa.struct([("text", pa.string()), ("kept", pa.bool_()), ("why", pa.string())]))
DONORS = pa.list_(pa.list_(pa.string()))


def row_id(n: int) -> str:
    return f"{n:064d}"


def url(n: int) -> str:
    return f"http://www.host{n}.test/{n}.jpg"


def content(n: int) -> str:
    """No id of another row."""
    return f"{n:c>64x}"


def words(n: int) -> str:
    return f"words of {n}."


def entry(n: int) -> dict[str, Any]:
    return {"text": words(n), "kept": None, "why": None}


@dataclass(frozen=True, kw_only=True)
class Pages(SourceStage):
    """As many rows as the file `list` says; `calls` counts those that were worked on."""

    list: ListFile
    calls: str = ""
    NOT_IN_KEY = frozenset({"calls"})
    MAX_REJECT_RATE = 0.5

    def row_schema(self) -> pa.Schema:
        return pa.schema([("id", pa.string()), ("url", pa.string())])

    def rows(self) -> Iterator[pa.Table]:
        ns = range(int(Path(self.list.path).read_text()))
        yield pa.table([[row_id(n) for n in ns], [url(n) for n in ns]], schema=self.row_schema())

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return pa.schema([*inp, ("texts", ENTRIES), ("sha256", pa.string()), heavy("image", pa.binary())])

    @contextmanager
    def open(self) -> Iterator[Work]:
        def work(table: pa.Table) -> Out:
            if self.calls:
                with open(self.calls, "a") as file:
                    file.write("".join(f"{i}\n" for i in table["id"].to_pylist()))
            ids = table["id"].to_pylist()
            dead = [i for i in ids if int(i) % 5 == 4]
            table = table.filter(pa.array([i not in dead for i in ids]))
            texts = [[entry(int(i))] for i in table["id"].to_pylist()]
            table = table.append_column("texts", pa.array(texts, ENTRIES))
            images = [f"image of {i}".encode() for i in table["id"].to_pylist()]
            table = table.append_column("sha256", [[content(int(i)) for i in table["id"].to_pylist()]])
            table = table.append_column("image", [images])
            return Out(
                table,
                [Reject(i, "fault", "dead", url(int(i))) for i in dead],
                [{"id": i, "attempts": 1 + int(i) % 3} for i in ids],
            )

        yield work


@dataclass(frozen=True, kw_only=True)
class SixUrls(Pages):
    """Row n has the url of n % 6: what many rows show is asked for under several texts."""

    def rows(self) -> Iterator[pa.Table]:
        for table in super().rows():
            urls = [url(int(i) % 6) for i in table["id"].to_pylist()]
            yield table.set_column(1, "url", [urls])


@dataclass(frozen=True, kw_only=True)
class Lister(GatherStage):
    """A list that a step made: only urls."""

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return pa.schema([("step", pa.int64())])

    def run(self, job: Job) -> None:
        pq.write_table(pa.table({"url": [url(n) for n in range(8)]}), f"{job.artifacts}/urls.parquet")


@dataclass(frozen=True, kw_only=True)
class Listed(Pages):
    """Its list is a Parquet file."""

    def rows(self) -> Iterator[pa.Table]:
        urls = pq.read_table(self.list.path)["url"].to_pylist()
        yield pa.table([[row_id(int(u.split("/")[-1][:-4])) for u in urls], urls], schema=self.row_schema())


@dataclass(frozen=True, kw_only=True)
class Twins(GatherStage):
    """A kept row takes the text of its twin."""

    ARTIFACT_REFERENCES: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "decisions.parquet": ("witness", "donors"),
        "edges.parquet": ("a", "b"),
    }

    def schema(self, inp: pa.Schema) -> pa.Schema:
        own = [("id", pa.string()), ("keep", pa.bool_()), ref("witness", pa.string())]
        return pa.schema([*own, ("gained", ENTRIES), ref("donors", DONORS)])

    def run(self, job: Job) -> None:
        ids = [i for one in job.inputs for b in one.batches(["id"]) for i in b["id"].to_pylist()]
        twins = {i: row_id(int(i) - 1) for i in ids if int(i) % 2 and row_id(int(i) - 1) in ids}
        rows = [{"id": i, "keep": i not in twins, "witness": twins.get(i)} for i in ids]
        for row in rows:
            other = row_id(int(row["id"]) + 1)
            took = twins.get(other) == row["id"]
            row |= {"gained": [entry(int(other))] if took else None, "donors": [[other]] if took else None}
        table = pa.Table.from_pylist(rows, self.schema(pa.schema([])))
        with ShardWriter(f"{job.artifacts}/decisions.parquet", table.schema) as writer:
            writer.write(table)
        edges = pa.table({"a": list(twins.values()), "b": list(twins), "cosine": [0.9] * len(twins)})
        pq.write_table(edges, f"{job.artifacts}/edges.parquet")
        job.emit(table)
        job.say(f"a duplicate of {next(iter(twins.values()))}, for one")


@dataclass(frozen=True, kw_only=True)
class Unique(MapStage):
    """Adds what was taken; `before` has it as well, by place, and the log names it."""

    decisions: File

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return pa.schema([*inp, ref("donors", DONORS), ("before", pa.list_(pa.string()))])

    @contextmanager
    def open(self) -> Iterator[Work]:
        decisions = {r["id"]: r for r in pq.read_table(self.decisions.path).to_pylist()}
        witness = {id_: row["witness"] for id_, row in decisions.items()}

        def work(table: pa.Table) -> Out:
            ids = table["id"].to_pylist()
            gone = [i for i in ids if witness[i]]
            rejects = [
                Reject(i, "filtered", "twin", f"duplicate of {witness[i]}, similarity 0.9") for i in gone
            ]
            table = table.filter(pa.array([i not in gone for i in ids]))
            rows = table.select(["id", "texts"]).to_pylist()
            gained = [decisions[row["id"]]["gained"] or [] for row in rows]
            texts = [row["texts"] + more for row, more in zip(rows, gained, strict=True)]
            donors = [
                [None, *decisions[r["id"]]["donors"]] if g else None
                for r, g in zip(rows, gained, strict=True)
            ]
            table = table.set_column(table.schema.get_field_index("texts"), "texts", pa.array(texts, ENTRIES))
            table = table.append_column("donors", pa.array(donors, DONORS))
            before = pa.array([[e["text"] for e in row] for row in texts], pa.list_(pa.string()))
            log = [{"id": r["id"], "took": e["text"]} for r, g in zip(rows, gained, strict=True) for e in g]
            return Out(table.append_column("before", before), rejects, log)

        yield work


@dataclass(frozen=True, kw_only=True)
class Model(GatherStage):
    """Its weights are made from the bytes of all rows."""

    LAUNCHES = True

    def tell(self, row: Mapping[str, Any]) -> list[str]:
        return [f"in the training set with its {len(row)} columns"]

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return pa.schema([("step", pa.int64())])

    def run(self, job: Job) -> None:
        num = sum(b.num_rows for one in job.inputs for b in one.batches(["id"], ["image"]))
        rows = [r for one in job.inputs for b in one.batches(["id", "before"]) for r in b.to_pylist()]
        seen = {"rows": rows, "vocabulary": {"words": 0, "2": 1}, "labels": ["a"]}
        (Path(job.artifacts) / "seen.json").write_text(json.dumps(seen))
        (Path(job.artifacts) / "weights.txt").write_text(f"trained on {num}")
        job.emit(pa.table({"step": [0]}))


@dataclass(frozen=True, kw_only=True)
class Packed(GatherStage):
    """The rows as they are, one file per shard."""

    COPIES = True

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return pa.schema([("file", pa.string())])

    def run(self, job: Job) -> None:
        for n, shard in enumerate(job.inputs[0].shards):
            rows = [b.to_pylist() for b in read_batches(job.inputs[0].store, shard)]
            (Path(job.artifacts) / f"{n}.txt").write_text(str(rows))
            job.emit(pa.table({"file": [f"{n}.txt"]}))


@dataclass(frozen=True, kw_only=True)
class Tuned(GatherStage):
    init: File

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return pa.schema([("step", pa.int64())])

    def run(self, job: Job) -> None:
        text = (Path(self.init.path) / "weights.txt").read_text()
        (Path(job.artifacts) / "weights.txt").write_text(f"{text}, tuned")
        job.emit(pa.table({"step": [0]}))


@dataclass(frozen=True, kw_only=True)
class Scored(MapStage):
    """Reads the heavy column; writes down which model it used."""

    model: File
    threshold: float = 0.5
    READS_HEAVY = ("image",)

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return pa.schema([*(f for f in inp if f.name != "url"), ("size", pa.int64()), ("model", pa.string())])

    @contextmanager
    def open(self) -> Iterator[Work]:
        def work(table: pa.Table) -> pa.Table:
            sizes = pa.array([len(b) for b in table["image"].to_pylist()], pa.int64())
            return (
                table.drop_columns(["url"])
                .append_column("size", sizes)
                .append_column("model", [[self.model.digest] * len(sizes)])
            )

        yield work
