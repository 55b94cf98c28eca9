"""Collects the data of a run that the report page (`stages.report.page`) shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from vlpipe.pipeline.engine.list_rows import ListRows
from vlpipe.pipeline.engine.planned import PlannedStep
from vlpipe.pipeline.engine.records.receipts import Receipt, sum_counts
from vlpipe.pipeline.engine.records.rejects import read_rejects
from vlpipe.pipeline.inspect.alarms import alarms
from vlpipe.pipeline.inspect.on_disk import StepReceipts, what_is_there
from vlpipe.pipeline.inspect.seconds import seconds_of
from vlpipe.pipeline.shard import Reject
from vlpipe.pipeline.stage import TIMED, Dataset
from vlpipe.pipeline.storage.store import Store

MAX_SHARDS = 8  # max number of shards per step whose rejects are read
MAX_REJECTS = 20_000  # max number of rejects per step


def step_values(steps: Sequence[PlannedStep], store: Store, *, running: bool = False) -> list[dict[str, Any]]:
    """Returns for each step the fields of the page's `StepView`. running: whether a run is in progress."""
    have = what_is_there(steps, store)
    return [_view(one, have[one.name], store, running) for one in steps]


def _view(one: PlannedStep, have: StepReceipts, store: Store, running: bool) -> dict[str, Any]:
    receipts = [have.receipts[index] for index in sorted(have.receipts)]
    rejects: Counter[str] = Counter()
    for receipt in receipts:
        rejects.update(receipt.rejects)
    spent: Counter[str] = Counter()
    for receipt in receipts:
        if TIMED[0] in receipt.run:
            spent.update(
                {kind: receipt.run[kind] for kind in (*TIMED, "seconds")} | {"rows": receipt.rows_in}
            )
    rows_out = sum(r.shard.num_rows for r in receipts)
    shards = tuple(r.shard for r in receipts)
    return {
        "name": one.name,
        "use": one.keyed.step.use,
        "status": "done" if one.is_done else "running" if running and receipts else "waiting",
        "rows_in": rows_out
        if isinstance(one.keyed.step.stage, ListRows)
        else sum(r.rows_in for r in receipts),
        "rows_out": rows_out,
        "rejects": dict(sorted(rejects.items())),
        "counts": sum_counts(receipts),
        "seconds": seconds_of(store, one.folder, receipts) if receipts or one.is_done else None,
        "spent": dict(spent),
        "params": dict(one.keyed.step.params),
        "inputs": tuple(p.name for p in one.above),
        "alarms": tuple(alarms(one, store)),
        "dataset": Dataset(store, one.name, one.schema_out, shards) if shards else None,
        "rejects_sample": _sample(one, receipts, store),
    }


def _sample(one: PlannedStep, receipts: Sequence[Receipt], store: Store) -> list[Reject]:
    """Returns the rejects of up to MAX_SHARDS evenly spaced shards, the first among them; at most MAX_REJECTS in all."""
    found: list[Reject] = []
    num = min(MAX_SHARDS, len(receipts))
    for k in sorted({round(n * (len(receipts) - 1) / max(num - 1, 1)) for n in range(num)}):
        if receipts[k].rejects and len(found) < MAX_REJECTS:
            rows = read_rejects(store, one.folder, receipts[k].index).to_pylist()
            found += [Reject(r["id"], r["kind"], r["why"], r["detail"]) for r in rows]
    return found[:MAX_REJECTS]
