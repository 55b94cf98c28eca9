"""One row of the two that belong together: the left and the right image of a statement."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.shard import Reject, heavy_names, is_heavy, need, ref
from vlpipe.pipeline.stage import Dataset, GatherStage, Job
from vlpipe.stages.downstream.statements import PART, SIDES

SECOND = "second_"
Groups = dict[str, dict[int, str]]  # group -> number -> row id


@dataclass(frozen=True, kw_only=True)
class Joined(GatherStage):
    """Emits the first row of each pair in the column `part`, with `second_NAME` of the other one for each of `columns`.

    `parent` and `second_id` are the ids of the two rows, and `id` is made from both.
    Steps that make features of images run before, on all images. Images are stored again.
    Reject code (filtered): no_partner, a row whose other one is not there. max_waiting_bytes: of rows whose other one comes
    in a later row group; raises VlpipeError above it, and for two rows with the same place in a pair.
    """

    NAME: ClassVar[str] = "downstream.joined:Joined"
    VERSION: ClassVar[int] = 2  # 2: ids of their own, so that a pair is forgotten with either of its rows
    ROWS_ARE: ClassVar[str] = "pairs of rows"

    columns: tuple[str, ...] = ("image", "width", "height")
    max_waiting_bytes: int = 1 << 30

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "downstream.joined", id=pa.string(), part=PART)
        need(inp, "downstream.joined", **{n: _type(inp, n) for n in self.columns})
        own = [field for field in inp if field.name not in ("part", "parent")]
        second = [inp.field(name).with_name(SECOND + name) for name in self.columns]
        ids = [pa.field("parent", pa.string()), ref(f"{SECOND}id", pa.string(), is_origin=True)]
        return pa.schema([*own, *ids, *second])

    def run(self, job: Job) -> None:
        whole = self._whole(job)
        for data in job.inputs:
            out, waiting = self.schema(data.schema), None
            for table in self._batches(data):
                current = table if waiting is None else pa.concat_tables([waiting, table])
                firsts, seconds, left = _places(current["part"], whole)
                if firsts:
                    job.emit(self._joined(current.take(firsts), current.take(seconds), out))
                waiting = current.take(pa.array(left, pa.int64()))
                if waiting.nbytes > self.max_waiting_bytes:
                    raise VlpipeError(
                        f"downstream.joined: {waiting.num_rows} rows wait for their other one, {waiting.nbytes:,} bytes, "
                        f"above max_waiting_bytes {self.max_waiting_bytes:,}; give rows that belong together in order"
                    )

    def _whole(self, job: Job) -> set[str]:
        """Returns the groups of which all rows are there in one input; rejects the rows of others."""
        whole: set[str] = set()
        rejects: list[Reject] = []
        for data in job.inputs:
            found: Groups = {}
            for table in data.batches(["id", "part"]):
                for id_, part in zip(table["id"].to_pylist(), table["part"].to_pylist(), strict=True):
                    if part is None or part["group"] is None:
                        raise VlpipeError(f"downstream.joined: row {id_} of {data.name} has no `part`")
                    sides = found.setdefault(part["group"], {})
                    if part["group"] in whole or part["number"] in sides or part["number"] not in SIDES:
                        raise VlpipeError(
                            f"downstream.joined: row {id_} is image {part['number']} of {part['group']!r}, and so is row "
                            f"{sides.get(part['number'], 'of another input')}; wanted one row for each of {SIDES}"
                        )
                    sides[part["number"]] = id_
            whole |= {group for group, sides in found.items() if len(sides) == len(SIDES)}
            for group, sides in found.items():
                if group not in whole:
                    rejects += [Reject(id_, "filtered", "no_partner", group) for id_ in sides.values()]
        job.reject(rejects)
        if not whole:
            raise VlpipeError("downstream.joined: no row has its other one")
        return whole

    def _batches(self, data: Dataset) -> Iterator[pa.Table]:
        light = [field.name for field in data.schema if not is_heavy(field)]
        yield from data.batches(light, heavy_names(data.schema))

    def _joined(self, first: pa.Table, second: pa.Table, out: pa.Schema) -> pa.Table:
        found = {name: first[name] for name in first.column_names}
        found |= {"parent": first["id"], f"{SECOND}id": second["id"]}
        pairs = zip(first["id"].to_pylist(), second["id"].to_pylist(), strict=True)
        found["id"] = pa.array([hashlib.sha256(f"{a}\0{b}".encode()).hexdigest() for a, b in pairs])
        found |= {SECOND + name: second[name] for name in self.columns}
        return pa.table([found[field.name] for field in out], schema=out)


def _places(parts: pa.ChunkedArray, whole: set[str]) -> tuple[list[int], list[int], list[int]]:
    """Returns the places of the first and of the second rows of pairs that are here, and those of rows that wait."""
    found: dict[str, dict[int, int]] = {}
    for place, part in enumerate(parts.to_pylist()):
        if part["group"] in whole:
            found.setdefault(part["group"], {})[part["number"]] = place
    pairs = [sides for sides in found.values() if len(sides) == len(SIDES)]
    left = [place for sides in found.values() if len(sides) < len(SIDES) for place in sides.values()]
    return [sides[0] for sides in pairs], [sides[1] for sides in pairs], left


def _type(schema: pa.Schema, name: str) -> pa.DataType:
    return schema.field(name).type if name in schema.names else pa.null()
