"""One shard through one map stage: read row groups, run the function, find the rows that break it, commit.

An exception in the function is narrowed down by halving the batch; only a row that fails alone is blamed. Faults of the
machine (memory, disk, a missing package) are nobody's row: they fail the attempt and reach the runner.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import platform
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from vlpipe.pipeline.errors import RowFault, StepFailed, VlpipeError
from vlpipe.pipeline.files import here
from vlpipe.pipeline.receipt import Receipt, read_rejects, shard_path, write_receipt, write_rejects
from vlpipe.pipeline.shard import (
    Heavy,
    Out,
    Reject,
    Shard,
    check_conserved,
    heavy_names,
    is_heavy,
    read_batches,
    write_shard,
)
from vlpipe.pipeline.shared import Address, at
from vlpipe.pipeline.source import recorded_hash, running_source
from vlpipe.pipeline.stage import AheadWork, MapStage, Work
from vlpipe.pipeline.store import Store

NOBODYS_ERRNO = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.EROFS,
}


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """Everything a worker needs for one shard; small, and picklable."""

    store: Store
    step: str
    stage: MapStage
    schema_in: pa.Schema
    schema_out: pa.Schema
    index: int
    input: Shard
    folder: str
    key: str
    artifacts_digest: str = ""
    max_reject_rate: float = 0.05
    torch_threads: int = 1
    isolate: bool = False
    attempt: int = 1
    shared: Address | None = None  # of the step's service, if it has one
    again: frozenset[str] = frozenset()  # `vlpipe retry`: only rows rejected for these codes are run
    counts: Mapping[str, int] = field(default_factory=dict)  # of the rows that are not run again


class ChildDied(Exception):
    """The isolated process that ran the function died."""


@contextmanager
def opened(stage: MapStage, torch_threads: int, shared: Address | None = None) -> Iterator[Work]:
    """The stage's function, with torch's threads as the step wants them."""
    if stage.TORCH:
        set_torch_threads(torch_threads)
    with ExitStack() as stack:
        with at(shared):
            work = stack.enter_context(here(stage).open())
        yield work


def set_torch_threads(num: int) -> None:
    """Threads, and MKL's reproducible mode: without it a row's result depends on its place in the batch (measured).

    MKL reads the variable at the first matrix product of the process; later it has no effect.
    """
    os.environ.setdefault("MKL_CBWR", "AUTO")
    import torch

    torch.set_num_threads(num)


def is_nobodys(error: BaseException) -> bool:
    """True for a fault of the machine or of the set-up, which says nothing about a row."""
    if isinstance(error, (MemoryError, ImportError, VlpipeError)):
        return True
    if isinstance(error, OSError) and error.errno in NOBODYS_ERRNO:
        return True
    return "OutOfMemory" in type(error).__name__ or "CUDA error" in str(error)


@dataclass
class Faults:
    """Rows blamed in this shard. Above the budget, halving on would only burn time: the stage is broken, not the rows."""

    step: str
    budget: int
    found: Counter[str] = field(default_factory=Counter)

    def blame(self, row_id: str, error: BaseException) -> Reject:
        if isinstance(error, ChildDied):
            why, detail = "killed_worker", str(error)
        elif isinstance(error, RowFault):
            why, detail = error.why, error.detail
        else:
            why, detail = f"error_{type(error).__name__}", str(error)
        self.found[f"{why} ({detail[:120]})" if detail else why] += 1
        if self.found.total() > self.budget:
            raise StepFailed(
                f"{self.step}: more than {self.budget} rows of one shard failed; {worst(self.found)}"
            )
        return Reject(row_id, "fault", why, detail[:500])


def worst(reasons: Counter[str], num: int = 3) -> str:
    return "worst reasons: " + ", ".join(f"{why} x {n}" for why, n in reasons.most_common(num))


def run_guarded(work: Work, batch: pa.Table, faults: Faults, *, alone_before: bool = False) -> Iterator[Out]:
    """Yield the outputs for a batch, in row order, with the rows that fail alone turned into rejects."""
    try:
        result = work(batch)
    except Exception as error:
        if is_nobodys(error):
            raise
        if batch.num_rows > 1:
            middle = batch.num_rows // 2
            yield from run_guarded(work, batch.slice(0, middle), faults)
            yield from run_guarded(work, batch.slice(middle), faults)
        elif not alone_before:  # a fault that passes is not the row's
            yield from run_guarded(work, batch, faults, alone_before=True)
        else:
            yield Out(batch.slice(0, 0), [faults.blame(batch["id"][0].as_py(), error)])
        return
    yield result if isinstance(result, Out) else Out(result)


def own_schema(task: ShardTask) -> pa.Schema:
    """What this step writes: light columns, and the heavy ones it makes itself."""
    inherited = set(heavy_names(task.schema_in))
    return pa.schema([f for f in task.schema_out if not (is_heavy(f) and f.name in inherited)])


def heavy_pointers(task: ShardTask, digest: str = "") -> tuple[Heavy, ...]:
    """Where each heavy column of the output lies: in this shard when made here, else where the input found it.

    digest: of this shard; empty while it is not written.
    """
    inherited = (
        () if task.stage.FAN_OUT else task.input.heavy
    )  # children have ids of their own: nothing to join by
    known = {one.column: one for one in inherited}
    path = shard_path(task.folder, task.index)
    known |= {name: Heavy(name, path, digest) for name in heavy_names(own_schema(task))}
    return tuple(sorted(one for one in known.values() if one.column in task.schema_out.names))


def run_shard(task: ShardTask, work: Work | None = None) -> Receipt:
    """Make shard `task.index`: rejects, the shard, its receipt. Without `work` the stage is opened here."""
    began = time.time()
    running_source(task.stage)  # the code as it is now, before any of it runs
    with ExitStack() as stack:
        if work is None:
            work = stack.enter_context(
                _isolated(task) if task.isolate else opened(task.stage, task.torch_threads, task.shared)
            )
        rejects: list[Reject] = []
        log: list[dict[str, Any]] = []
        counts = Counter(task.counts)
        make = _outputs_again if task.again else _outputs
        rows = make(task, work, rejects, log, counts)
        schema = own_schema(task)
        group_rows = _group_rows(task)
        path = shard_path(task.folder, task.index)
        stats: dict[str, dict[str, Any]] = {}
        shard = write_shard(task.store, path, rows, schema, group_rows, stats)
        codes, rejects_digest = write_rejects(task.store, task.folder, task.index, task.step, rejects)
    if log:
        lines = "".join(json.dumps(line, sort_keys=True, default=str) + "\n" for line in log)
        task.store.write_bytes(f"{task.folder}/_log/{task.index:06d}.jsonl", lines.encode())
    receipt = Receipt(
        index=task.index,
        shard=dataclasses.replace(shard, key=task.key, heavy=heavy_pointers(task, shard.digest)),
        bytes=task.store.size(path),
        rows_in=task.input.num_rows,
        input_digest=task.input.digest,
        input_heavy=task.input.heavy_digests(task.stage.READS_HEAVY),
        artifacts_digest=task.artifacts_digest,
        rejects=codes,
        rejects_digest=rejects_digest,
        counts=dict(sorted(counts.items())),
        columns=stats,
        source=recorded_hash(task.stage),
        run={"seconds": round(time.time() - began, 3), "host": platform.node(), "attempts": task.attempt},
    )
    write_receipt(task.store, task.folder, receipt)
    return receipt


def _isolated(task: ShardTask) -> Any:
    from vlpipe.pipeline.isolated import isolated

    return isolated(task.stage, task.torch_threads, task.shared)


def _group_rows(task: ShardTask) -> int:
    return task.stage.ROW_GROUP_ROWS


def _outputs(
    task: ShardTask, work: Work, rejects: list[Reject], log: list[dict[str, Any]], counts: Counter[str]
) -> Iterator[pa.Table]:
    """Run every row group; check that no row is lost; pass the tables on."""
    faults = Faults(task.step, budget=max(10, int(task.max_reject_rate * task.input.num_rows)))
    light = [f.name for f in task.schema_in if not is_heavy(f)]
    batches = read_batches(task.store, task.input, light, task.stage.READS_HEAVY)
    for batch in _told_ahead(batches, work):
        out_ids: Counter[str] = Counter()
        rejected: Counter[str] = Counter()
        for out in run_guarded(work, batch, faults):
            rejects.extend(out.rejects)
            log.extend(out.log)
            counts.update(out.counts)
            rejected.update(r.id for r in out.rejects)
            out_ids.update(out.table["parent" if task.stage.FAN_OUT else "id"].to_pylist())
            if out.table.num_rows:
                yield out.table
        _conserved(task, Counter(batch["id"].to_pylist()), out_ids, rejected)


def _told_ahead(batches: Iterator[pa.Table], work: Work) -> Iterator[pa.Table]:
    """The batches, in order; work that wants to know of them early has been told."""
    if not isinstance(work, AheadWork):
        yield from batches
        return
    told: deque[pa.Table] = deque()
    for batch in batches:
        work.ahead(batch)
        told.append(batch)
        if len(told) > work.num_ahead:
            yield told.popleft()
    yield from told


def _conserved(task: ShardTask, ids_in: Counter[str], out: Counter[str], rejected: Counter[str]) -> None:
    who = f"step {task.step}, shard {task.index}"
    if task.stage.FAN_OUT:  # each row in has at least one child, or a reject
        out = Counter(dict.fromkeys(out, 1))
        rejected = Counter({i: 1 for i in rejected if i not in out})
        ids_in = Counter(set(ids_in))
    check_conserved(who, ids_in, out, rejected)


def _outputs_again(
    task: ShardTask, work: Work, rejects: list[Reject], log: list[dict[str, Any]], counts: Counter[str]
) -> Iterator[pa.Table]:
    """`retry`: run only the rows rejected for given codes; the others stay as they are, in input order."""
    before = read_rejects(task.store, task.folder, task.index).to_pylist()
    again = {r["id"] for r in before if r["kind"] == "fault" and r["why"] in task.again}
    old = Shard(path=shard_path(task.folder, task.index), num_rows=0, digest="", heavy=())
    schema = own_schema(task)
    kept = pa.concat_tables(
        [
            schema.empty_table(),
            *read_batches(task.store, old, [f.name for f in schema if not is_heavy(f)], heavy_names(schema)),
        ],
        promote_options="permissive",
    )
    fresh: list[pa.Table] = [schema.empty_table()]
    new_rejects: dict[str, Reject] = {
        r["id"]: Reject(r["id"], r["kind"], r["why"], r["detail"]) for r in before if r["id"] not in again
    }
    order: list[str] = []
    faults = Faults(task.step, budget=max(10, len(again)))
    light = [f.name for f in task.schema_in if not is_heavy(f)]
    for batch in read_batches(task.store, task.input, light, task.stage.READS_HEAVY):
        ids = batch["id"].to_pylist()
        order.extend(ids)
        part = batch.filter(pa.array([i in again for i in ids]))
        for out in run_guarded(work, part, faults) if part.num_rows else ():
            log.extend(out.log)
            counts.update(out.counts)
            new_rejects.update({r.id: r for r in out.rejects})
            fresh.append(out.table.select(schema.names).cast(schema))
    rejects.extend(new_rejects[i] for i in order if i in new_rejects)
    merged = pa.concat_tables([kept.select(schema.names).cast(schema), *fresh])
    _conserved(task, Counter(order), Counter(merged["id"].to_pylist()), Counter([*new_rejects]))
    place = {id_: n for n, id_ in enumerate(merged["id"].to_pylist())}
    yield merged.take(pa.array([place[i] for i in order if i in place], pa.int64()))
