"""`status`: progress of each step of a workflow, and who holds the root's lock."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table

from vlpipe.pipeline.engine.locking.lock import runs_held_here
from vlpipe.pipeline.engine.locking.lock_file import LEASE_S, newest, state_of
from vlpipe.pipeline.engine.planned import PlannedStep, is_gather
from vlpipe.pipeline.engine.records.progress_notes import is_running
from vlpipe.pipeline.inspect.alarms import alarms
from vlpipe.pipeline.inspect.on_disk import StepReceipts, what_is_there
from vlpipe.pipeline.inspect.seconds import seconds_of
from vlpipe.pipeline.storage.printable import counts, size
from vlpipe.pipeline.storage.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class StepStatus:
    """State and sizes of a step; of an unfinished step, those of its valid shards."""

    name: str
    state: str  # "done", "2 of 7 shards", "not run"; "running", "running, 2 of 7 shards"
    num_shards: int
    rows: int
    rejects: dict[str, int]  # "kind:code" -> rows
    seconds: float  # summed over shards, also if they ran in parallel
    bytes: int
    why: str  # why the step is not done; empty if it is done or running
    alarms: tuple[str, ...] = ()  # of a finished or running step, see `alarms.py`


def status(steps: Sequence[PlannedStep], store: Store) -> list[StepStatus]:
    """Returns the status of each step."""
    have, run = what_is_there(steps, store), live_run(store)
    return [_status(one, have[one.name], store, run) for one in steps]


def _status(one: PlannedStep, have: StepReceipts, store: Store, run: str) -> StepStatus:
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
            alarms=tuple(alarms(one, store)),
        )
    receipts = list(have.receipts.values())
    rejects: Counter[str] = Counter()
    for receipt in receipts:
        rejects.update(receipt.rejects)
    total = "?" if have.num_shards is None else have.num_shards
    so_far = f"{len(receipts)} of {total} shards" if receipts or not is_gather(one) else ""
    runs = bool(run) and is_running(store, one.folder, run)
    states = ["running", so_far] if runs else [so_far if receipts else "not run"]
    return StepStatus(
        name=one.name,
        state=", ".join(state for state in states if state),
        num_shards=len(receipts),
        rows=sum(r.shard.num_rows for r in receipts),
        rejects=dict(rejects),
        seconds=seconds_of(store, one.folder, receipts),
        bytes=sum(r.bytes for r in receipts),
        why="" if runs else one.reason,
        alarms=tuple(alarms(one, store)) if runs else (),
    )


def live_run(store: Store) -> str:
    """Returns the id of the run in progress; empty if there is none."""
    found = newest(store) if lock_holder(store).is_running else None
    return found.record.run if found and found.record else ""


def folder_bytes(store: Store, rel: str) -> int:
    """Returns the size of a folder in bytes; 0 if it does not exist."""
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
        color = "green" if one.state == "done" else "cyan" if one.state.startswith("running") else "yellow"
        numbers = [
            f"{one.num_shards:,}",
            f"{one.rows:,}",
            f"{sum(one.rejects.values()):,}",
            f"{one.seconds:.1f}",
        ]
        shown = [*numbers, size(one.bytes)] if ran else [""] * 5
        reasons = escape(counts(one.rejects)) or (f"[dim]{escape(one.why)}[/dim]" if one.why else "")
        reasons += "".join(f"\n[red]warning: {escape(text)}[/red]" for text in one.alarms)
        table.add_row(escape(one.name), f"[{color}]{one.state}[/{color}]", *shown, reasons)
    return table


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds the root's lock, as one line; empty if nobody does."""

    text: str = ""
    is_running: bool = False


def lock_holder(store: Store) -> Holder:
    """Returns who holds the root's lock, and whether that run is known to be running."""
    lock = newest(store)
    state = state_of(lock, runs_held_here()) if lock else "ended"
    if lock is None or state == "ended":
        return Holder()
    if lock.record is None:
        return Holder(f"{store.path(lock.rel)} cannot be read: it is unknown who holds this root")
    age_s = max(0.0, time.time() - lock.record.beat)
    who = f"{lock.record.who}, last heartbeat {age_s:.0f} s ago"
    if state in ("here", "fresh"):
        return Holder(f"a run is in progress: {who}", is_running=True)
    if state == "gone":
        return Holder(f"a run was killed: {who}; `vlpipe run` continues from here")
    ahead = " (its clock is ahead of ours)" if lock.record.beat > time.time() + LEASE_S else ""
    return Holder(
        f"a run may be in progress: {who}{ahead}; `vlpipe run` waits for a heartbeat and continues from here if none comes"
    )
