"""`retry`: runs only the rows of a step that were rejected with given codes; all other rows stay unchanged.

Only faults are retried. Rows filtered by a rule (an opt-out, say) would be filtered again and must not be fetched again.
It uses the runner's loop, but does not reuse finished shards of other folders, which would bring the old rejects back.
Until the retry is done, the old shards are kept in a separate folder (as links if the file system supports them). However
a retry ends, the next run reuses from there the shards that were not remade, so no row is fetched twice.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vlpipe.pipeline.change.before_retry import before_folder
from vlpipe.pipeline.engine.assembly import parts_of
from vlpipe.pipeline.engine.executor import Executor, Watcher
from vlpipe.pipeline.engine.planned import PlannedStep, fans_out, is_gather
from vlpipe.pipeline.engine.records.manifest import write_manifest
from vlpipe.pipeline.engine.records.receipts import (
    Receipt,
    log_path,
    read_receipt,
    read_unfinished,
    receipt_path,
    shard_path,
    write_receipt,
)
from vlpipe.pipeline.engine.records.rejects import rejects_path
from vlpipe.pipeline.engine.runner import Run
from vlpipe.pipeline.engine.step_state import State
from vlpipe.pipeline.engine.worker.map_shard import ShardTask
from vlpipe.pipeline.engine.worker.retry_shard import RetryTask
from vlpipe.pipeline.errors import VlpipeError, did_you_mean
from vlpipe.pipeline.inspect.on_disk import what_is_there
from vlpipe.pipeline.inspect.verify.run import shard_problems
from vlpipe.pipeline.steps.checked import find_step
from vlpipe.pipeline.storage.file_names import STEP_FILE
from vlpipe.pipeline.storage.printable import counts
from vlpipe.pipeline.storage.store import Store

FAULT = "fault:"


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryResult:
    """Counts of a retry; `str` gives one line for the user."""

    num_shards: int
    num_changed: int  # shards whose content changed
    num_rows: int  # retried rows
    rows_back: int  # retried rows that are now in the output
    rejects: dict[str, int]  # reject code -> rows, in the retried shards after the retry

    def __str__(self) -> str:
        left = f"; still rejected in these shards: {counts(self.rejects)}" if self.rejects else ""
        ran = f"{self.num_rows:,} row(s) in {self.num_shards} shard(s) retried"
        return f"{ran}, {self.rows_back:,} now in the output{left}"


class _RetryRun(Run):
    """A run of one step that retries, in the shards `touched`, the rows rejected with `codes`."""

    def __init__(
        self,
        one: PlannedStep,
        touched: Sequence[Receipt],
        codes: Sequence[str],
        store: Store,
        executor: Executor,
        watcher: Watcher,
    ) -> None:
        # adopting finished shards would bring the old rejects back
        super().__init__([one], store, executor, watcher, parts_of(store, adopts=False))
        self.touched, self.codes = {r.index: r for r in touched}, frozenset(codes)

    def _map_task(self, state: State, index: int) -> ShardTask:
        task = super()._map_task(state, index)
        old = self.touched.get(index)
        if old is None:
            return task
        fields = {f.name: getattr(task, f.name) for f in dataclasses.fields(task)}
        return RetryTask(**fields, again=self.codes, counts=old.counts, source=old.source)


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
    """Retries the rows of step `name` that were rejected with `codes`. The caller holds the root's lock.

    interrupted, grace_s: as in `Run.go`. After an error, shards that were not remade are valid again. Raises VlpipeError if
    the step cannot be retried or no fault has one of the codes.
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
    loop = _RetryRun(one, touched, codes, store, executor, watcher or Watcher())
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
    """Returns the step, its receipts by shard index, and the receipts of shards with rows to retry.

    First restores the shards of a killed retry. The caller holds the root's lock. Raises VlpipeError as `check` and
    `affected` do.
    """
    one = check(steps, name)
    recover(one, store)
    old = what_is_there(steps, store)[one.name].receipts
    return one, old, affected(one, old, codes)


def _keep(one: PlannedStep, store: Store, touched: Sequence[Receipt]) -> None:
    folder, step_file = before_folder(one), f"{one.folder}/{STEP_FILE}"
    store.write_bytes(f"{folder}/{STEP_FILE}", store.read_bytes(step_file))
    for receipt in touched:
        _copy(store, receipt, one.folder, folder)
    _sync(store, folder)


def recover(one: PlannedStep, store: Store) -> None:
    """Restores the shards that a killed retry had not remade yet; does nothing without such a retry."""
    folder = before_folder(one)
    if not store.exists(folder):
        return
    found = read_unfinished(store, one.folder)
    missing = {k: r for k, r in read_unfinished(store, folder).items() if k not in found}
    for receipt in missing.values():
        _copy(store, receipt, folder, one.folder)
    if missing:
        _sync(store, one.folder)
        one.found = read_unfinished(store, one.folder)


def _copy(store: Store, receipt: Receipt, folder: str, to: str) -> None:
    """Copies or links a shard with its rejects and log to folder `to`, then writes its receipt there."""
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
    """Returns the step. Raises VlpipeError if it cannot be retried: it gathers or fans out, or an input is not done."""
    one = find_step(steps, name)
    if is_gather(one):
        raise VlpipeError(
            f"step {one.name!r} is a gather step, which reads all rows at once; `vlpipe retry` works on map steps only"
        )
    if fans_out(one):
        raise VlpipeError(
            f"step {one.name!r} makes several rows from one input row, so `vlpipe retry` cannot retry its rejects alone"
        )
    waiting = [p.name for p in (*one.above, *one.artifact_steps) if not p.is_done]
    if waiting:
        raise VlpipeError(
            f"step {one.name!r} reads {waiting[0]!r}, which is not done; run `vlpipe run` first"
        )
    return one


def affected(one: PlannedStep, receipts: dict[int, Receipt], codes: Sequence[str]) -> list[Receipt]:
    """Returns receipts of shards with a fault of one of `codes`. Raises VlpipeError for a code that no fault has."""
    have: Counter[str] = Counter()
    filtered = set()
    for receipt in receipts.values():
        have.update({c.removeprefix(FAULT): n for c, n in receipt.rejects.items() if c.startswith(FAULT)})
        filtered |= {c.partition(":")[2] for c in receipt.rejects if not c.startswith(FAULT)}
    for code in codes:
        if code not in have and code in filtered:
            raise VlpipeError(
                f"the rows that step {one.name!r} rejected with code {code!r} were filtered by a rule: they did not "
                f"fail, so there is nothing to retry{did_you_mean(code, have) if have else ''}"
            )
        if code not in have:
            none = "; its rejects were all filtered by a rule" if filtered else "; it has no rejects"
            hint = did_you_mean(code, have) if have else none
            raise VlpipeError(f"step {one.name!r} rejected no row with code {code!r}{hint}")
    return [r for _, r in sorted(receipts.items()) if any(_rejected(r, code) for code in codes)]


def _rejected(receipt: Receipt, code: str) -> int:
    return receipt.rejects.get(FAULT + code, 0)


def put_back(store: Store, folder: str, receipts: Sequence[Receipt]) -> None:
    """Rewrites missing receipts whose shards are unchanged. `receipts` must not include shards that are still running."""
    for receipt in receipts:
        is_missing = not store.exists(receipt_path(folder, receipt.index))
        if is_missing and not shard_problems(store, folder, receipt):
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
