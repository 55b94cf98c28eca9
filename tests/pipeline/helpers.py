"""Run a workflow written in a test, and look at what it left."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pyarrow as pa

from vlpipe.pipeline.engine.assembly import local_executor, new_run
from vlpipe.pipeline.engine.executor import Watcher
from vlpipe.pipeline.engine.locking.lock import locked
from vlpipe.pipeline.engine.plan import plan, remember
from vlpipe.pipeline.engine.planned import PlannedStep
from vlpipe.pipeline.storage.store import Store
from vlpipe.pipeline.workflow.load import Workflow

CHAIN = """
name: toy
steps:
  numbers: {use: "toys:Numbers", num_rows: 20, shard_rows: 6}
  scale: {use: "toys:Scale", from: numbers, by: 3}
  every: {use: "toys:Every", from: scale}
  sum: {use: "toys:Sum", from: every}
  add: {use: "toys:AddSum", from: every, total: {from: sum, path: sum.json}}
  payload: {use: "toys:Payload", from: add}
"""


def planned(folder: Path, text: str, sets: tuple[str, ...] = ()) -> tuple[list[PlannedStep], Store]:
    file = folder / "w.yaml"
    file.write_text(text)
    root = str(folder / "root")
    return plan(Workflow.load(str(file), sets=sets, root=root), Store(root)), Store(root)


def run(
    folder: Path, text: str, sets: tuple[str, ...] = (), ray: bool = False, address: str | None = None
) -> dict[str, PlannedStep]:
    """Run to the end, in this process, on Ray, or on the Ray cluster at `address`; returns the steps by name."""
    steps, store = planned(folder, text, sets)
    with locked(store) as run_id:
        remember(steps, store)
        if ray or address:
            from vlpipe.pipeline.engine.on_ray.executor import RayExecutor

            executor = RayExecutor(run_id, address)
        else:
            executor = local_executor()
        try:
            new_run(steps, store, executor, Watcher()).go()
        finally:
            executor.close()
    return {one.name: one for one in steps}


def rows(folder: Path, one: PlannedStep, heavy: tuple[str, ...] = ()) -> pa.Table:
    data = one.dataset(Store(str(folder / "root")))
    return pa.concat_tables(data.batches(want_heavy=heavy))


def rejects(folder: Path, one: PlannedStep) -> list[dict[str, str]]:
    from vlpipe.pipeline.engine.records.rejects import read_rejects

    store = Store(str(folder / "root"))
    return [r for k in range(len(one.receipts)) for r in read_rejects(store, one.folder, k).to_pylist()]


def left(root: Path) -> dict[str, str]:
    """Every file below the root with its digest; receipts and their collection by what identifies them, not by when.

    The lock's file counts the runs, and events have their times: both are left out.
    """
    found = {}
    for path in sorted(
        p for p in root.rglob("*") if p.is_file() and p.parent.name not in ("_lock", "_events")
    ):
        rel = str(path.relative_to(root))
        timed = (
            "_receipts/" in rel
            or rel.endswith("_shards.parquet")
            or "_log/" in rel
            or rel.startswith("_cache")
        )
        found[rel] = "" if timed else hashlib.sha256(_untimed(path)).hexdigest()
    return found


def _untimed(path: Path) -> bytes:
    """A file's bytes; of a manifest without its seals over receipts, which say when."""
    if path.name != "manifest.json":
        return path.read_bytes()
    manifest = json.loads(path.read_text())
    return json.dumps({k: v for k, v in manifest.items() if k not in ("sha256", "shards_file")}).encode()
