"""Rows with short ids, that name one another in every way: cells, lists, structs in lists, artifacts, rejects, logs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from vlpipe.pipeline.shard import Out, Reject, ref
from vlpipe.pipeline.stage import GatherStage, Job, MapStage, SourceStage, Work

LINKED = """
name: linked
steps:
  short: {use: "ref_toys:Short", shard_rows: 3}
  linked: {use: "ref_toys:Linked", from: short}
  groups: {use: "ref_toys:Groups", from: linked}
  copied: {use: "ref_toys:Copied", from: short}
  below: {use: "ref_toys:Below", from: copied}
"""
GIVEN = pa.list_(pa.struct([("text", pa.string()), ref("from", pa.list_(pa.string()))]))
ROWS: list[dict[str, Any]] = [
    {"id": "11", "text": "12", "license": "12", "tags": ["12", "x"]},
    {"id": "12", "text": "a dog", "license": "cc", "tags": []},
    {"id": "13", "text": "12 dogs", "license": "12", "tags": None},
    {"id": "my cat.jpg", "text": "a cat", "license": "cc", "tags": ["13"]},
    {"id": "14", "text": "14", "license": "14", "tags": ["14"]},
    {"id": "15", "text": "row 12", "license": "12", "tags": ["12"]},
]


@dataclass(frozen=True, kw_only=True)
class Short(SourceStage):
    def row_schema(self) -> pa.Schema:
        tags = pa.list_(pa.string())
        return pa.schema(
            [("id", pa.string()), ("text", pa.string()), ("license", pa.string()), ("tags", tags)]
        )

    def rows(self) -> Iterator[pa.Table]:
        yield pa.Table.from_pylist(ROWS, self.row_schema())

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield lambda table: table


@dataclass(frozen=True, kw_only=True)
class Linked(MapStage):
    """Row 15 is a reject, and names two others."""

    MAX_REJECT_RATE = 1.0

    def schema(self, inp: pa.Schema) -> pa.Schema:
        near = ref("near", pa.list_(pa.string()))
        two = ref("two", pa.list_(pa.string(), 2))
        place = pa.field("place", pa.struct([("x", pa.int64()), ref("of", pa.string())]))
        return pa.schema([*inp, ref("witness", pa.string()), near, two, place, pa.field("given", GIVEN)])

    @contextmanager
    def open(self) -> Iterator[Work]:
        def work(table: pa.Table) -> Out:
            rows = [row for row in table.to_pylist() if row["id"] != "15"]
            for row in rows:
                row |= {
                    "witness": "12",
                    "near": ["12", "14", "12", "my cat.jpg"],
                    "two": ["14", "12"],
                    "place": {"x": 1, "of": "12"},
                    "given": [{"text": "12", "from": ["12", "13"]}, {"text": "y", "from": None}],
                }
            rejects = [
                Reject(
                    "15",
                    "filtered",
                    "twin",
                    "duplicate of 12, similarity 12; after 12 tries; twin of my cat.jpg, as 13",
                )
                for id_ in table["id"].to_pylist()
                if id_ == "15"
            ]
            log = [{"id": row["id"], "status": "12", "said": "12 of 12"} for row in rows]
            log += [{"id": row["id"], "witness": "12"} for row in rows]
            return Out(pa.Table.from_pylist(rows, self.schema(table.schema)), rejects, log)

        yield work


@dataclass(frozen=True, kw_only=True)
class Groups(GatherStage):
    """Artifacts whose rows have no id: pairs, and groups with a list of members."""

    ARTIFACT_REFERENCES: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "pairs.parquet": ("a", "b"),
        "groups.parquet": ("members",),
    }

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return pa.schema([("kind", pa.string())])

    def run(self, job: Job) -> None:
        pairs = {"a": ["11", "12", "13"], "b": ["12", "13", "14"], "kind": ["12", "near", "12"]}
        groups = {"members": [["11", "12"], ["13"], None], "label": ["12", "12", "x"]}
        pq.write_table(pa.table(pairs), Path(job.artifacts) / "pairs.parquet")
        pq.write_table(pa.table(groups), Path(job.artifacts) / "groups.parquet")
        job.emit(pa.table({"kind": ["12"]}))
        job.say("12 rows, the largest group is that of row 12: 3 of 12")


NEAR = pa.struct([("text", pa.string()), ref("of", pa.string(), is_origin=True)])


@dataclass(frozen=True, kw_only=True)
class Copied(GatherStage):
    """Rows that copied a text from others: the row "11+12" as a whole, and of "13+13" single items and a struct."""

    ROWS_ARE: ClassVar[str] = "pairs of rows"

    def schema(self, inp: pa.Schema) -> pa.Schema:
        near, places = pa.field("near", pa.list_(NEAR)), pa.field("each", pa.list_(pa.list_(NEAR)))
        ids = [pa.field("id", pa.string()), ref("other", pa.string(), is_origin=True)]
        ids.append(ref("all", pa.list_(pa.string()), is_origin=True))
        return pa.schema([*ids, pa.field("text", pa.string()), near, places, pa.field("one", NEAR)])

    def run(self, job: Job) -> None:
        near = [{"text": ROWS[k]["text"], "of": ROWS[k]["id"]} for k in (1, 3)]
        more = {"near": [near, near], "each": [[near, []], [None, near[:1]]], "one": [near[0], near[0]]}
        pairs = {
            "id": ["11+12", "13+13", "11+"],
            "other": ["12", "13", None],
            "text": ["a dog", "12 dogs", ""],
        }
        pairs["all"] = [None, [], ["11", "12"]]
        more = {name: [*value, None] for name, value in more.items()}
        job.emit(pa.table({**pairs, **more}, self.schema(pa.schema([]))))


@dataclass(frozen=True, kw_only=True)
class Below(MapStage):
    def schema(self, inp: pa.Schema) -> pa.Schema:
        return pa.schema([inp.field("id"), inp.field("text")])

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield lambda table: table.select(["id", "text"])
