"""Who stays: one decision per row, made in a total keep order, so that shard order changes nothing.

Rows are numbered by their place in the keep order, 0 is the best: of an edge (a, b) with a < b, a is better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.shard import ShardWriter, is_heavy, need
from vlpipe.pipeline.stage import Dataset

DECISIONS = pa.schema(
    [
        ("id", pa.string()),
        ("keep", pa.bool_()),
        (
            "why",
            pa.string(),
        ),  # exact_duplicate | near_duplicate; of a kept row why it could not be compared, or null
        ("witness", pa.string()),  # id of the kept row it is a twin of; null for kept rows
        ("similarity", pa.float32()),  # to the witness, 1 is equal
        ("group", pa.string()),  # id of the row that stands for the group: the witness, or the row itself
    ]
)

Places = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Edges:
    """Similar pairs: `a[i] < b[i]` are places in the keep order, `similarity[i]` is how alike the two are."""

    a: Places
    b: Places
    similarity: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Twins:
    """Per place: the place of the kept row it is a twin of (-1: the row is kept), and how alike they are."""

    witness: Places
    similarity: npt.NDArray[np.float32]


def check_input(schema: pa.Schema, who: str) -> None:
    """The columns the keep order reads; `id` must be there, the others count where they are."""
    need(schema, who, id=pa.string())
    for name, dtype in (("width", pa.int32()), ("height", pa.int32()), ("url", pa.string())):
        if name in schema.names:
            need(schema, who, **{name: dtype})


def read_rows(inputs: Sequence[Dataset], *more: str) -> pa.Table:
    """`id`, what the keep order reads and the columns `more`, in input order; ids must be unique."""
    tables = []
    for data in inputs:
        light = [f.name for f in data.schema if not is_heavy(f)]
        wanted = [n for n in ("id", "width", "height", "url", *more) if n in light]
        tables.append(data.table(wanted))
    rows = pa.concat_tables(tables, promote_options="default")
    repeated = rows.num_rows - pc.count_distinct(rows["id"]).as_py()
    if repeated:
        names = ", ".join(data.name for data in inputs)
        raise VlpipeError(f"{repeated} id(s) come more than once in {names}: give each row to dedup once")
    return rows


def keep_order(rows: pa.Table) -> Places:
    """Positions in `rows`, best first: most pixels, then smallest url, then smallest id (they are unique)."""
    columns = {"id": rows["id"]}
    keys = [("id", "ascending")]
    if "url" in rows.schema.names:
        columns["url"] = pc.fill_null(rows["url"], "")
        keys.insert(0, ("url", "ascending"))
    if {"width", "height"} <= set(rows.schema.names):
        sides = (pc.cast(pc.fill_null(rows[n], 0), pa.int64()) for n in ("width", "height"))
        columns["pixels"] = pc.multiply(*sides)
        keys.insert(0, ("pixels", "descending"))
    return np.asarray(pc.sort_indices(pa.table(columns), sort_keys=keys), dtype=np.int64)


def greedy(num_rows: int, edges: Edges) -> Twins:
    """Go through the rows in keep order; a row that is still there takes out all its later twins.

    So every removed row has a witness that is kept, and no two kept rows are twins. In a chain A~B~C with A
    best, B goes and C stays: C's only twin is not in the data any more.
    """
    witness = np.full(num_rows, -1, np.int64)
    similarity = np.ones(num_rows, np.float32)
    by_better = np.lexsort((edges.b, edges.a))
    better, worse, alike = edges.a[by_better], edges.b[by_better], edges.similarity[by_better]
    bounds = np.append(np.flatnonzero(np.diff(better, prepend=-1)), len(better))
    for start, stop in pairwise(bounds):
        if witness[better[start]] >= 0:
            continue
        free = witness[worse[start:stop]] < 0
        witness[worse[start:stop][free]] = better[start]
        similarity[worse[start:stop][free]] = alike[start:stop][free]
    return Twins(witness, similarity)


def decision_table(ids: pa.ChunkedArray, order: Places, twins: Twins, why: Sequence[str | None]) -> pa.Table:
    """Decisions in input order. `order` from `keep_order`; `twins` and `why` are by place."""
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    witness = twins.witness[place]
    keep = witness < 0
    names = pc.take(ids, pa.array(order[witness], mask=keep))  # null where kept
    codes = np.array(why, object)[place] if len(order) else np.array([], object)
    columns = {
        "id": ids,
        "keep": pa.array(keep),
        "why": pa.array(codes, pa.string()),
        "witness": names,
        "similarity": pa.array(twins.similarity[place], mask=keep),
        "group": pc.coalesce(names, ids),
    }
    return pa.table(columns).cast(DECISIONS)


def write_artifact(path: str, table: pa.Table, schema: pa.Schema) -> None:
    with ShardWriter(path, schema) as writer:
        writer.write(table)


def say_counts(decisions: pa.Table) -> str:
    """One line for the person watching."""
    removed = decisions.num_rows - pc.sum(decisions["keep"]).as_py() if decisions.num_rows else 0
    counts = [
        f"{c['values']} {c['counts']:,}" for c in decisions["why"].value_counts().to_pylist() if c["values"]
    ]
    return f"{decisions.num_rows:,} rows, {removed:,} to drop: {', '.join(sorted(counts)) or 'no duplicates'}"
