"""`retry`: run only the rows of a step that were rejected for given codes; the others stay as they are.

Only faults are run again. What a rule filtered (an opt-out, say) would be filtered again, and must not be asked for.
The loop is the runner's, without taking over shards of siblings: that would bring the old rejects back.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vlpipe.pipeline.cells import counts
from vlpipe.pipeline.errors import VlpipeError, did_you_mean
from vlpipe.pipeline.manifest import write_manifest
from vlpipe.pipeline.plan import Planned, is_gather
from vlpipe.pipeline.receipt import Receipt, read_receipt, receipt_path, write_receipt
from vlpipe.pipeline.records import find_step, what_is_there
from vlpipe.pipeline.runner import Executor, Run, State, Watcher
from vlpipe.pipeline.store import Store
from vlpipe.pipeline.verify import shard_problems
from vlpipe.pipeline.work import ShardTask

FAULT = "fault:"


@dataclass(frozen=True, kw_only=True, slots=True)
class Retried:
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
        one: Planned,
        again: dict[int, frozenset[str]],
        counts: dict[int, Mapping[str, int]],
        store: Store,
        executor: Executor,
        watcher: Watcher,
    ) -> None:
        super().__init__([one], store, executor, watcher)
        self.again, self.counts = again, counts
        self.finished_shards = None  # they would bring the old rejects back

    def _map_task(self, state: State, index: int) -> ShardTask:
        task = super()._map_task(state, index)
        return dataclasses.replace(
            task, again=self.again.get(index, frozenset()), counts=self.counts.get(index, {})
        )


def retry(
    steps: Sequence[Planned],
    store: Store,
    name: str,
    codes: Sequence[str],
    executor: Executor,
    watcher: Watcher | None = None,
) -> Retried:
    """Needs the root's lock. After an error, shards that are as they were count as before."""
    one = check(steps, name)
    old = what_is_there(steps, store)[one.name].receipts
    touched = affected(one, old, codes)
    manifest, receipts = one.manifest, one.receipts
    one.undo()
    store.remove(f"{one.folder}/manifest.json")
    for receipt in touched:
        store.remove(receipt_path(one.folder, receipt.index))
    numbers = {r.index for r in touched}
    one.found = {index: r for index, r in old.items() if index not in numbers}
    again = {r.index: frozenset(codes) for r in touched}
    before = {r.index: r.counts for r in touched}
    loop = _Again(one, again, before, store, executor, watcher or Watcher())
    try:
        loop.go()
    except BaseException:
        running = loop.states[one.name].running if one.name in loop.states else set()
        put_back(store, one.folder, [r for r in touched if r.index not in running])
        if manifest is not None and all(read_receipt(store, one.folder, r.index) == r for r in touched):
            write_manifest(store, one.folder, manifest, receipts)
        raise
    return _summary(one, touched, codes)


def check(steps: Sequence[Planned], name: str) -> Planned:
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


def affected(one: Planned, receipts: dict[int, Receipt], codes: Sequence[str]) -> list[Receipt]:
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


def _summary(one: Planned, touched: list[Receipt], codes: Sequence[str]) -> Retried:
    now = {r.index: r for r in one.receipts}
    left: Counter[str] = Counter()
    for receipt in touched:
        left.update(now[receipt.index].rejects)
    return Retried(
        num_shards=len(touched),
        num_changed=sum(now[r.index].shard.digest != r.shard.digest for r in touched),
        num_rows=sum(_rejected(r, code) for r in touched for code in set(codes)),
        rows_back=sum(now[r.index].shard.num_rows - r.shard.num_rows for r in touched),
        rejects=dict(left),
    )
