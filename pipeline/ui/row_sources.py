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


def before_reject(
    root: Root, one: StepState, table: RowTable, position: int, id_: str
) -> dict[str, Any] | None:
    """Returns the row that a step rejected, as the step got it: {"step", "at"} in the input step; None if it is not there.

    table: the step's rejects; position: of the reject in it. Only the input shard that the reject comes from is read.
    """
    k, _ = table.shard_of(position)
    index = [r for r in one.receipts if r.rejects][k]
    state = root.reader.state()
    for folder in one.inputs:
        above = state.step(folder)
        start = 0
        for receipt in above.receipts:
            if receipt.shard.digest == index.input_digest or (one.is_gather and receipt.shard.num_rows):
                at = _row_in(root, receipt.shard, id_)
                if at is not None:
                    return {"step": folder, "at": start + at}
            start += receipt.shard.num_rows
    return None


def _row_in(root: Root, shard: Shard, id_: str) -> int | None:
    with open_parquet(root.store, shard.path) as file:
        if "id" not in file.schema_arrow.names:
            return None
        ids = file.read(columns=["id"], use_threads=False)["id"]
    at = int(pc.index(ids, pa.scalar(id_, pa.string())).as_py())
    return at if at >= 0 else None


def places(root: Root, folders: Sequence[str], ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Returns id -> {"step", "at"} in the first of the steps that has the row."""
    found: dict[str, dict[str, Any]] = {}
    for folder in folders:
        wanted = [id_ for id_ in dict.fromkeys(ids) if id_ not in found]
        if wanted:
            at = rows_of(root, folder).find(wanted)
            found |= {id_: {"step": folder, "at": place} for id_, place in at.items()}
    return found
