"""`retry`: run only the rows of a step that were rejected for given codes; the others stay as they are.

Only faults are run again. What a rule filtered (an opt-out, say) would be filtered again, and must not be asked for.
The loop is the runner's, without taking over shards of siblings: that would bring the old rejects back.
The shards as they were lie in a folder of their own until all is done (links, where the file system has them). Whatever
ends a retry, the next run takes over from there what was not made again: no row is asked of the world twice.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vlpipe.pipeline.engine.executor import Executor, Watcher
from vlpipe.pipeline.engine.plan import PlannedStep, is_gather
from vlpipe.pipeline.engine.records.manifest import write_manifest
from vlpipe.pipeline.engine.records.receipts import (
    Receipt,
    log_path,
    read_receipt,
    read_unfinished,
    receipt_path,
    rejects_path,
    shard_path,
    write_receipt,
)
from vlpipe.pipeline.engine.runner import Run
from vlpipe.pipeline.engine.step_state import State
from vlpipe.pipeline.engine.worker.map_shard import ShardTask
from vlpipe.pipeline.errors import VlpipeError, did_you_mean
from vlpipe.pipeline.inspect.on_disk import find_step, what_is_there
from vlpipe.pipeline.inspect.verify.run import shard_problems
from vlpipe.pipeline.storage.file_names import STEP_FILE
from vlpipe.pipeline.storage.printable import counts
from vlpipe.pipeline.storage.store import Store

FAULT = "fault:"


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryResult:
    num_shards: int
    num_changed: int  # shards that are not what they were
    num_rows: int  # rows that were run again
    rows_back: int
    rejects: dict[str, int]  # of the shards that were touched, as they are now

    def __str__(self) -> str:
        left = f"; still rejected in these shards: {counts(self.rejects)}" if self.rejects else ""
        ran = f"{self.num_rows:,} row(s) in {self.num_shards} shard(s) run again"
        return f"{ran}, {self.rows_back:,} came back{left}"


class _Again(Run):
    """A run of one step in which the given shards are made with `again`."""

    def __init__(
        self,
        one: PlannedStep,
        touched: Sequence[Receipt],
        codes: Sequence[str],
        store: Store,
        executor: Executor,
        watcher: Watcher,
    ) -> None:
        super().__init__([one], store, executor, watcher)
        self.touched, self.codes = {r.index: r for r in touched}, frozenset(codes)
        self.finished_shards = None  # they would bring the old rejects back

    def _map_task(self, state: State, index: int) -> ShardTask:
        task = super()._map_task(state, index)
        old = self.touched.get(index)
        if old is None:
            return task
        return dataclasses.replace(task, again=self.codes, counts=old.counts, source=old.source)


def retry(
    steps: Sequence[PlannedStep],
    store: Store,
    name: str,
    codes: Sequence[str],
    executor: Executor,
    watcher: Watcher | None = None,
    interrupted: Callable[[], None] = lambda: None,
    grace_s: float = 0.0,
) -> RetryResult:
    """Needs the root's lock; `interrupted` and `grace_s` as in `Run.go`.

    After an error, shards that are as they were count as before.
    """
    one, old, touched = wanted(steps, store, name, codes)
    manifest, receipts = one.manifest, one.receipts
    _keep(one, store, touched)
    one.undo()
    store.remove(f"{one.folder}/manifest.json")
    for receipt in touched:
        store.remove(receipt_path(one.folder, receipt.index))
    numbers = {r.index for r in touched}
    one.found = {index: r for index, r in old.items() if index not in numbers}
    loop = _Again(one, touched, codes, store, executor, watcher or Watcher())
    try:
        loop.go(interrupted, grace_s)
    except BaseException:
        running = loop.states[one.name].running if one.name in loop.states else set()
        put_back(store, one.folder, [r for r in touched if r.index not in running])
        if manifest is not None and all(read_receipt(store, one.folder, r.index) == r for r in touched):
            write_manifest(store, one.folder, manifest, receipts)
            store.remove(before_folder(one))
            store.remove(f"{one.folder}/work")
        raise
    store.remove(before_folder(one))
    return _summary(one, touched, codes)


def wanted(
    steps: Sequence[PlannedStep], store: Store, name: str, codes: Sequence[str]
) -> tuple[PlannedStep, dict[int, Receipt], list[Receipt]]:
    """The step, its receipts, and those of shards with rows to run again.

    Finishes what a killed retry left; needs the root's lock.
    """
    one = check(steps, name)
    recover(one, store)
    old = what_is_there(steps, store)[one.name].receipts
    return one, old, affected(one, old, codes)


def before_folder(one: PlannedStep) -> str:
    """Where shards lie as they were before a retry: for the runner the folder of an unfinished step like any other."""
    return f"{one.name}.before_retry-{one.keyed.step_key[:8]}"


def _keep(one: PlannedStep, store: Store, touched: Sequence[Receipt]) -> None:
    folder, said = before_folder(one), f"{one.folder}/{STEP_FILE}"
    store.write_bytes(f"{folder}/{STEP_FILE}", store.read_bytes(said))
    for receipt in touched:
        _copy(store, receipt, one.folder, folder)
    _sync(store, folder)


def recover(one: PlannedStep, store: Store) -> None:
    """Put shards back that a killed retry was about to make again."""
    folder = before_folder(one)
    if not store.exists(folder):
        return
    found = read_unfinished(store, one.folder)
    lost = {k: r for k, r in read_unfinished(store, folder).items() if k not in found}
    for receipt in lost.values():
        _copy(store, receipt, folder, one.folder)
    if lost:
        _sync(store, one.folder)
        one.found = read_unfinished(store, one.folder)


def clean(steps: Sequence[PlannedStep], store: Store) -> None:
    """Remove what killed retries left of steps that are done."""
    there = set(store.list())
    for one in steps:
        if one.is_done and before_folder(one) in there:
            store.remove(before_folder(one))


def _copy(store: Store, receipt: Receipt, folder: str, to: str) -> None:
    """A shard with its rejects and its log, then its receipt, under another folder."""
    index, path = receipt.index, shard_path(to, receipt.index)
    store.link_or_copy(receipt.shard.path, path)
    for rel in (rejects_path, log_path):
        if store.exists(rel(folder, index)):
            store.link_or_copy(rel(folder, index), rel(to, index))
        else:
            store.remove(rel(to, index))
    heavy = tuple(h._replace(path=path) if h.path == receipt.shard.path else h for h in receipt.shard.heavy)
    shard = dataclasses.replace(receipt.shard, path=path, heavy=heavy)
    write_receipt(store, to, dataclasses.replace(receipt, shard=shard))


def _sync(store: Store, folder: str) -> None:
    store.sync(folder, f"{folder}/_receipts", f"{folder}/_rejects")


def check(steps: Sequence[PlannedStep], name: str) -> PlannedStep:
    """The step, if its rows can be run again one by one."""
    one = find_step(steps, name)
    if is_gather(one):
        raise VlpipeError(
            f"step {one.name!r} works on all rows at once; retry is for steps that work row by row"
        )
    if getattr(one.keyed.step.stage, "FAN_OUT", False):
        raise VlpipeError(
            f"step {one.name!r} makes several rows of one; its rejects cannot be run again alone"
        )
    waiting = [p.name for p in (*one.above, *one.artifact_steps) if not p.is_done]
    if waiting:
        raise VlpipeError(
            f"step {one.name!r} reads {waiting[0]!r}, which is not done; `vlpipe run` comes first"
        )
    return one


def affected(one: PlannedStep, receipts: dict[int, Receipt], codes: Sequence[str]) -> list[Receipt]:
    """Shards with a fault of one of the codes. Each code must occur, else it is a typo."""
    have: Counter[str] = Counter()
    filtered = set()
    for receipt in receipts.values():
        have.update({c.removeprefix(FAULT): n for c, n in receipt.rejects.items() if c.startswith(FAULT)})
        filtered |= {c.partition(":")[2] for c in receipt.rejects if not c.startswith(FAULT)}
    for code in codes:
        if code not in have and code in filtered:
            raise VlpipeError(
                f"rows of step {one.name!r} with {code!r} were filtered by a rule: nothing failed, so there is "
                f"nothing to retry{did_you_mean(code, have) if have else ''}"
            )
        if code not in have:
            there = did_you_mean(code, have) if have else "; it has no rejects"
            raise VlpipeError(f"no row of step {one.name!r} was rejected for {code!r}{there}")
    return [r for _, r in sorted(receipts.items()) if any(_rejected(r, code) for code in codes)]


def _rejected(receipt: Receipt, code: str) -> int:
    return receipt.rejects.get(FAULT + code, 0)


def put_back(store: Store, folder: str, receipts: Sequence[Receipt]) -> None:
    """Write the receipts again whose shards are as they were. A shard still at work must not be among them."""
    for receipt in receipts:
        gone = not store.exists(receipt_path(folder, receipt.index))
        if gone and not shard_problems(store, folder, receipt):
            write_receipt(store, folder, receipt)


def _summary(one: PlannedStep, touched: list[Receipt], codes: Sequence[str]) -> RetryResult:
    now = {r.index: r for r in one.receipts}
    left: Counter[str] = Counter()
    for receipt in touched:
        left.update(now[receipt.index].rejects)
    return RetryResult(
        num_shards=len(touched),
        num_changed=sum(now[r.index].shard.digest != r.shard.digest for r in touched),
        num_rows=sum(_rejected(r, code) for r in touched for code in set(codes)),
        rows_back=sum(now[r.index].shard.num_rows - r.shard.num_rows for r in touched),
        rejects=dict(left),
    )
