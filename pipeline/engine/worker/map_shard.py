"""Runs one shard through one map stage: reads row groups, calls the function, commits rows, rejects and receipt.

`guard` finds the rows for which the function fails, `stage_output` converts its result to what the stage declared.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import pyarrow as pa

from vlpipe.pipeline.engine.records.receipts import Receipt, log_path, shard_path, write_receipt
from vlpipe.pipeline.engine.records.rejects import write_rejects
from vlpipe.pipeline.engine.worker.guard import Faults, hopeless_at, run_guarded
from vlpipe.pipeline.engine.worker.hooks import Hooks
from vlpipe.pipeline.engine.worker.stage_output import Settle
from vlpipe.pipeline.errors import SchemaError
from vlpipe.pipeline.parquet.conform import OwnIds, need_ids
from vlpipe.pipeline.parquet.row_conservation import check_conserved, check_has_children
from vlpipe.pipeline.service import Address
from vlpipe.pipeline.shard import (
    Heavy,
    Out,
    Reject,
    Shard,
    heavy_names,
    is_heavy,
    read_batches,
    write_shard,
)
from vlpipe.pipeline.stage import AheadWork, CommittingWork, MapStage, TimedWork, Work
from vlpipe.pipeline.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """Everything a worker needs to compute one shard; small and picklable."""

    store: Store
    step: str
    stage: MapStage
    schema_in: pa.Schema
    schema_out: pa.Schema
    index: int
    input: Shard
    folder: str
    key: str
    hooks: Hooks
    artifacts_digest: str = ""
    max_reject_rate: float = 0.05
    num_rows_step: int | None = None  # input rows of the whole step, once known
    num_rows_guess: int = 0  # estimate of `num_rows_step` until it is known
    any_good: bool = False  # other shards of the step had good rows
    torch_threads: int = 1
    isolate: bool = False  # run in its own process, to find the rows that kill it
    deadline_s: float | None = None  # seconds, for one call of the stage's function
    attempt: int = 1
    shared: Address | None = None  # address of the step's service, if it has one

    def outputs(self, run: ShardRun, work: Work) -> Iterator[pa.Table]:
        """Processes every row group and yields the output tables; rejects go to `run`."""
        for batch in run.noted(_with_prefetch(run.batches(), work)):
            for out in run.outputs(work, batch):
                run.rejects.extend(out.rejects)
                if out.table.num_rows:
                    yield out.table


def own_schema(task: ShardTask) -> pa.Schema:
    """Returns the columns this step writes: light columns, and the heavy columns it creates itself."""
    inherited = set() if task.stage.FAN_OUT else set(heavy_names(task.schema_in))
    return pa.schema([f for f in task.schema_out if not (is_heavy(f) and f.name in inherited)])


def heavy_pointers(task: ShardTask, made: Shard | None = None) -> tuple[Heavy, ...]:
    """Returns where each heavy column of the output is stored: in this shard if created here, else where the input has it.

    made: this shard; None before it is written.
    """
    digests = (made.digest, made.footer) if made else ("", "")
    inherited = () if task.stage.FAN_OUT else task.input.heavy  # children have new ids: nothing to join by
    known = {one.column: one for one in inherited}
    path = shard_path(task.folder, task.index)
    known |= {name: Heavy(name, path, *digests) for name in heavy_names(own_schema(task))}
    return tuple(sorted(one for one in known.values() if one.column in task.schema_out.names))


def run_shard(task: ShardTask, work: Work | None = None) -> Receipt:
    """Computes and commits shard `task.index`: rows, rejects and receipt, which is returned.

    work: the stage's function; without it, the stage is opened here. Raises StepFailed, SchemaError or VlpipeError if the
    step cannot succeed, AttemptFailed if the shard may be retried.
    """
    began = time.monotonic()
    task.hooks.running_code(task.stage)
    with ExitStack() as stack:
        stack.enter_context(task.hooks.captured(task.store, _log(task, ".txt")))
        if work is None:
            work = stack.enter_context(opening(task))
        if isinstance(work, TimedWork):
            work.seconds()  # of a shard that failed before
        run = ShardRun(task)
        rows = _unique(task.outputs(run, work))
        schema = own_schema(task)
        group_rows = _group_rows(task)
        path = shard_path(task.folder, task.index)
        stats: dict[str, dict[str, Any]] = {}
        try:
            shard = write_shard(task.store, path, rows, schema, group_rows, stats)
        except BaseException:
            with suppress(OSError):  # e.g. a full disk: the original error says more
                _write_tracebacks(run)
            raise
        spent = work.seconds() if isinstance(work, TimedWork) else {}
        figures = work.committing() if isinstance(work, CommittingWork) else {}
        codes, rejects_digest = write_rejects(task.store, task.folder, task.index, task.step, run.rejects)
    _write_tracebacks(run)
    if run.log:
        encode = json.JSONEncoder(sort_keys=True, allow_nan=False).encode
        lines = "".join(f"{encode(line)}\n" for line in run.log)
        task.store.write_bytes(log_path(task.folder, task.index), lines.encode())
    receipt = Receipt(
        index=task.index,
        shard=dataclasses.replace(shard, key=task.key, heavy=heavy_pointers(task, shard)),
        bytes=task.store.size(path),
        rows_in=task.input.num_rows,
        input_digest=task.input.digest,
        input_heavy=task.input.heavy_digests(task.stage.READS_HEAVY),
        artifacts_digest=task.artifacts_digest,
        rejects=codes,
        rejects_digest=rejects_digest,
        counts=dict(sorted(run.counts.items())),
        columns=stats,
        source="+".join(sorted({*run.sources, task.hooks.recorded_code(task.stage)})),
        run={
            "seconds": round(time.monotonic() - began, 3),
            "host": platform.node(),
            "attempts": task.attempt,
            **{kind: round(seconds, 3) for kind, seconds in spent.items()},
            **figures,
        },
    )
    write_receipt(task.store, task.folder, receipt)
    return receipt


def _log(task: ShardTask, ending: str) -> str:
    """Returns the path of a log: `.txt`, what the stage printed; `.errors.txt`, the first traceback of each code."""
    return f"{task.folder}/_log/{task.index:06d}{ending}"


def _write_tracebacks(run: ShardRun) -> None:
    """Writes tracebacks of exceptions whose reject code the stage did not choose itself."""
    if run.faults.tracebacks:
        texts = [f"{code}\n{text}" for code, text in sorted(run.faults.tracebacks.items())]
        run.task.store.write_bytes(_log(run.task, ".errors.txt"), "\n".join(texts).encode())


def opening(task: ShardTask) -> AbstractContextManager[Work]:
    """Opens the stage's function as this task needs it: in this process, or in its own process that can be killed."""
    return task.hooks.opened(
        task.stage, task.torch_threads, task.shared, isolate=task.isolate, deadline_s=task.deadline_s
    )


def _group_rows(task: ShardTask) -> int:
    return task.stage.ROW_GROUP_ROWS


def _faults(task: ShardTask) -> Faults:
    allowed = task.max_reject_rate * (task.num_rows_step or task.num_rows_guess)
    return Faults(
        budget=max(10, int(task.max_reject_rate * task.input.num_rows)),
        most=None if task.num_rows_step is None else int(allowed),
        hopeless=None if task.any_good else hopeless_at(allowed),
        home=type(task.stage).__module__,
    )


@dataclass
class ShardRun:
    """A shard in progress: everything it produces besides rows. sources: hashes of other code that made some of its rows."""

    task: ShardTask
    rejects: list[Reject] = field(default_factory=list)
    log: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    sources: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        task = self.task
        self.faults, self.who = _faults(task), f"step {task.step}, shard {task.index}"
        self.key = "parent" if task.stage.FAN_OUT else "id"
        if lost := [n for n in {"id", self.key} if n not in task.schema_out.names]:
            raise SchemaError(
                f"{self.who}: the schema of the stage has no column {lost[0]!r}, by which its rows are identified; add it"
            )
        self._settle = Settle(self.who, own_schema(task), self.key, self.faults)

    def batches(self) -> Iterator[pa.Table]:
        light = [f.name for f in self.task.schema_in if not is_heavy(f)]
        return read_batches(self.task.store, self.task.input, light, self.task.stage.READS_HEAVY)

    def noted(self, batches: Iterator[pa.Table]) -> Iterator[pa.Table]:
        """Yields the batches and writes progress notes."""
        return self.task.hooks.noted(self.task.store, self.task.folder, self.task.index, batches)

    def outputs(self, work: Work, batch: pa.Table) -> Iterator[Out]:
        """Yields the outputs of one batch; rows for which the function fails are rejects.

        Raises VlpipeError if a row is lost.
        """
        once = self.task.stage.OBSERVES_WORLD
        out_ids: Counter[str] = Counter()
        rejected: Counter[str] = Counter()
        parts = map(batch.slice, range(batch.num_rows), repeat(1)) if once and self.task.isolate else [batch]
        for part in parts:
            for out in run_guarded(work, part, self.faults, settle=self._settle, once=once):
                self.log.extend(out.log)
                self.counts.update(out.counts)
                need_ids(out.table["id"])
                need_ids(out.table[self.key], name=self.key)
                rejected.update(r.id for r in out.rejects)
                out_ids.update(out.table[self.key].to_pylist())
                yield out
        check_rows(self.task, Counter(batch["id"].to_pylist()), out_ids, rejected)


def _unique(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Yields the tables; raises VlpipeError if an id occurs twice."""
    ids = OwnIds()
    for table in tables:
        ids.add(table["id"])
        yield table
    ids.check()


def _with_prefetch(batches: Iterator[pa.Table], work: Work) -> Iterator[pa.Table]:
    """Yields the batches in order. If `work` prefetches, calls `work.ahead(batch)` up to `num_ahead` batches early."""
    if not isinstance(work, AheadWork):
        yield from batches
        return
    pending: deque[pa.Table] = deque()
    for batch in batches:
        work.ahead(batch)
        pending.append(batch)
        if len(pending) > work.num_ahead:
            yield pending.popleft()
    yield from pending


def check_rows(task: ShardTask, ids_in: Counter[str], out: Counter[str], rejected: Counter[str]) -> None:
    """Raises VlpipeError if a row is lost or comes twice."""
    if task.stage.FAN_OUT:
        check_has_children("the stage", ids_in, out, rejected)
    else:
        check_conserved("the stage", ids_in, out, rejected)
