"""Where the rows of a page come from: the output of a step, or its rejects, which have conditions and pages as well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlpipe.pipeline.engine.records.rejects import rejects_path
from vlpipe.pipeline.inspect.roots.state import StepState
from vlpipe.pipeline.inspect.rows.columns import leaves
from vlpipe.pipeline.inspect.rows.table import RowTable, open_rows
from vlpipe.pipeline.shard import REJECT_SCHEMA, Shard, open_parquet
from vlpipe.pipeline.ui.site import Missing, Root

PARTS = ("rows", "rejects")


def rows_of(root: Root, folder: str, part: str = "rows") -> RowTable:
    """Returns the rows of a step. part: `rows`, or `rejects`. Raises Missing for another part, VlpipeError for no step."""
    one = root.reader.state().step(folder)
    if part == "rows":
        return open_rows(root.store, one.folder, one.receipts)
    if part != "rejects":
        raise Missing(f"wanted one of {', '.join(PARTS)}")
    having = [r for r in one.receipts if r.rejects]
    shards = tuple(
        Shard(
            path=rejects_path(folder, r.index),
            num_rows=sum(r.rejects.values()),
            digest=r.rejects_digest,
        )
        for r in having
    )
    starts = np.concatenate([[0], np.cumsum([s.num_rows for s in shards], dtype=np.int64)]).astype(np.int64)
    version = (f"{folder}/_rejects", len(shards), shards[-1].digest if shards else "")
    return RowTable(root.store, shards, starts, REJECT_SCHEMA, (), version)


def filterable(table: RowTable) -> list[dict[str, Any]]:
    """Returns the columns that conditions may name, with `kind`: number, text or bool."""
    kinds = (
        (leaf, "number" if leaf.is_number else "text" if leaf.is_text else "bool")
        for leaf in leaves(table.light)
    )
    return [{"path": leaf.path, "kind": kind, "list": leaf.in_list} for leaf, kind in kinds]


def before_rejects(
    root: Root, one: StepState, table: RowTable, rejects: Sequence[tuple[int, str]]
) -> dict[str, dict[str, Any]]:
    """Returns id -> {"step", "at"}: the rows that a step rejected, in the step that it got them from.

    table: the step's rejects; rejects: (position in it, id). Of a map step, only the input shards that the rejects come
    from are read, once each; of a gather step, the ids of its inputs.
    """
    if one.is_gather:
        return places(root, one.inputs, [id_ for _, id_ in rejects])
    having, state = [r for r in one.receipts if r.rejects], root.reader.state()
    wanted: dict[str, list[str]] = {}  # digest of the input shard -> ids
    for position, id_ in rejects:
        wanted.setdefault(having[table.shard_of(position)[0]].input_digest, []).append(id_)
    found: dict[str, dict[str, Any]] = {}
    for folder in one.inputs:
        start = 0
        for receipt in state.step(folder).receipts:
            ids = wanted.get(receipt.shard.digest, ())
            for id_, at in _rows_in(root, receipt.shard, ids).items() if ids else ():
                found.setdefault(id_, {"step": folder, "at": start + at})
            start += receipt.shard.num_rows
    return found


def _rows_in(root: Root, shard: Shard, ids: Sequence[str]) -> dict[str, int]:
    """Returns id -> row in the shard, for those of `ids` that it has."""
    with open_parquet(root.store, shard.path) as file:
        if "id" not in file.schema_arrow.names:
            return {}
        held = file.read(columns=["id"], use_threads=False)["id"]
    rows = np.flatnonzero(pc.is_in(held, pa.array(ids, pa.string())).to_numpy(zero_copy_only=False))
    return dict(zip(held.take(pa.array(rows)).to_pylist(), rows.tolist(), strict=True))


def places(root: Root, folders: Sequence[str], ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Returns id -> {"step", "at"} in the first of the steps that has the row."""
    found: dict[str, dict[str, Any]] = {}
    for folder in folders:
        wanted = [id_ for id_ in dict.fromkeys(ids) if id_ not in found]
        if wanted:
            at = rows_of(root, folder).find(wanted)
            found |= {id_: {"step": folder, "at": place} for id_, place in at.items()}
    return found
