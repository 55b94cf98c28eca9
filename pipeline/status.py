"""How far a workflow is: one line per step, and who is at work on the root."""

from __future__ import annotations

import json
import platform
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table

from vlpipe.pipeline import lock
from vlpipe.pipeline.cells import counts, size
from vlpipe.pipeline.plan import Planned
from vlpipe.pipeline.receipt import seconds_of
from vlpipe.pipeline.records import Have, what_is_there
from vlpipe.pipeline.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class StepStatus:
    name: str
    state: str  # "done", "2 of 7 shards", "not run"
    num_shards: int
    rows: int
    rejects: dict[str, int]
    seconds: float  # summed over shards, whatever ran at once
    bytes: int
    why: str  # why it is not done


def status(steps: Sequence[Planned], store: Store) -> list[StepStatus]:
    have = what_is_there(steps, store)
    return [_status(one, have[one.name], store) for one in steps]


def _status(one: Planned, have: Have, store: Store) -> StepStatus:
    if one.manifest is not None:
        m = one.manifest
        extra = folder_bytes(store, f"{one.folder}/artifacts") if m.artifacts else 0
        return StepStatus(
            name=one.name,
            state="done",
            num_shards=m.num_shards,
            rows=m.rows_out,
            rejects=dict(m.rejects),
            seconds=seconds_of(store, one.folder),
            bytes=m.bytes + extra,
            why="",
        )
    receipts = list(have.receipts.values())
    rejects: Counter[str] = Counter()
    for receipt in receipts:
        rejects.update(receipt.rejects)
    total = "?" if have.num_shards is None else have.num_shards
    return StepStatus(
        name=one.name,
        state=f"{len(receipts)} of {total} shards" if receipts else "not run",
        num_shards=len(receipts),
        rows=sum(r.shard.num_rows for r in receipts),
        rejects=dict(rejects),
        seconds=seconds_of(store, one.folder, receipts),
        bytes=sum(r.bytes for r in receipts),
        why=one.reason,
    )


def folder_bytes(store: Store, rel: str) -> int:
    return int(store.fs.du(store.path(rel))) if store.exists(rel) else 0


def status_table(found: Sequence[StepStatus]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("step", "state"):
        table.add_column(name, no_wrap=True)
    for name in ("shards", "rows", "rejected", "seconds", "size"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("reasons", overflow="fold")
    for one in found:
        ran = bool(one.num_shards) or one.state == "done"
        color = "green" if one.state == "done" else "yellow"
        numbers = [
            f"{one.num_shards:,}",
            f"{one.rows:,}",
            f"{sum(one.rejects.values()):,}",
            f"{one.seconds:.1f}",
        ]
        shown = [*numbers, size(one.bytes)] if ran else [""] * 5
        said = escape(counts(one.rejects)) or (f"[dim]{escape(one.why)}[/dim]" if one.why else "")
        table.add_row(escape(one.name), f"[{color}]{one.state}[/{color}]", *shown, said)
    return table


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds the root's lock, in one line; empty when nobody does."""

    text: str = ""
    is_running: bool = False


def lock_holder(store: Store) -> Holder:
    if not store.exists(lock.REL):
        return Holder()
    try:
        held = store.read_json(lock.REL)
    except (json.JSONDecodeError, FileNotFoundError):
        return Holder()  # it just went away
    age_s = max(0.0, time.time() - held["beat"])
    who = f"process {held['pid']} on {held['host']}, last sign of life {age_s:.0f} s ago"
    here = held["host"] == platform.node()
    if lock.process_start(held["pid"]) == held["started"] != "" if here else age_s < lock.LEASE_S:
        return Holder(f"a run is going on: {who}", is_running=True)
    return Holder(f"a run was killed: {who}; `vlpipe run` goes on from here")
