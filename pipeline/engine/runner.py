"""Runs a plan in one scheduling loop over references to shards. No row data passes through the driver.

Shard k of a step starts as soon as shard k of its input exists, downstream steps first. Only gather stages and steps
that read artifacts wait for whole steps. Running units are bounded by the cluster's resources (`on_ray/scheduler.py`).
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from vlpipe.pipeline.engine.executor import (
    MAX_ATTEMPTS,
    MAX_DEATHS,
    MAX_LOST,
    Executor,
    Unit,
    UnitResult,
    Watcher,
    WorkerDied,
    unasked_gpus,
)
from vlpipe.pipeline.engine.leftovers import drop_surplus, sweep
from vlpipe.pipeline.engine.parts import Parts
from vlpipe.pipeline.engine.planned import (
    PlannedStep,
    artifacts_digest,
    inputs_digest,
    is_gather,
    look,
    read_digests,
    resolve_stage,
    stale_source,
)
from vlpipe.pipeline.engine.records.manifest import make_manifest, write_manifest, write_step_file
from vlpipe.pipeline.engine.records.receipts import (
    Receipt,
    made_from,
    own_digest,
    receipt_path,
    write_receipt,
)
from vlpipe.pipeline.engine.records.step_keys import shard_key
from vlpipe.pipeline.engine.step_state import State
from vlpipe.pipeline.engine.worker.gather import GatherResult, GatherTask
from vlpipe.pipeline.engine.worker.guard import is_out_of_memory
from vlpipe.pipeline.engine.worker.map_shard import ShardTask, heavy_pointers
from vlpipe.pipeline.errors import AttemptFailed, StepFailed, VlpipeError, explain
from vlpipe.pipeline.shard import Heavy, Shard
from vlpipe.pipeline.storage.store import Store


class Run:
    """The run loop and its state. Finished shards are kept, whatever stops the loop."""

    def __init__(
        self,
        steps: Sequence[PlannedStep],
        store: Store,
        executor: Executor,
        watcher: Watcher,
        parts: Parts,
    ) -> None:
        self.store, self.executor, self.watcher, self.parts = store, executor, watcher, parts
        self.states = {one.name: State(one) for one in steps if not one.is_done}
        for one in steps:
            if one.is_done:  # left by a run that was killed just after it wrote the manifest
                store.remove(f"{one.folder}/work")
        self._arrived: deque[UnitResult] = deque()  # ended, not yet processed
        self._gathering: dict[
            tuple[str, str], State
        ] = {}  # (stage key, digest of the inputs) -> the first such step

    def go(self, check: Callable[[], None] = lambda: None, grace_s: float = 0.0) -> None:
        """Runs until all steps are done. check: called in every iteration; an exception it raises stops the run. After
        any error, running units get `grace_s` seconds to finish, and their shards are committed."""
        try:
            self._loop(check)
        except BaseException as error:
            self._wind_down(error, grace_s)
            raise

    def _loop(self, check: Callable[[], None]) -> None:
        steps = [s.one for s in self.states.values()]
        problems = [*unasked_gpus(steps), *self.executor.check(steps, self.store)]
        if problems:
            raise VlpipeError("the workflow cannot run here:\n  " + "\n  ".join(problems))
        while True:
            self._advance()
            if not self.states:
                return
            if not any(s.running for s in self.states.values()):
                stuck = self.executor.stuck(self._wanting())
                if stuck:
                    raise VlpipeError(stuck)
            self._arrived.extend(self.executor.wait(timeout_s=0.5))
            while self._arrived:
                self._take(self._arrived.popleft())
            self.watcher.tick()
            check()
            self.parts.check_lock()

    def _wind_down(self, error: BaseException, grace_s: float) -> None:
        """Commits units that have ended or end within `grace_s`. Failed ones are ignored: the next run repeats them."""
        num_running = sum(len(s.running) for s in self.states.values()) - len(self._arrived)
        if num_running and grace_s:
            self.watcher.stopping(error, num_running)
            self._arrived.extend(self.executor.drain(grace_s))
        while self._arrived:
            done = self._arrived.popleft()
            if not isinstance(done.result, BaseException):
                with suppress(VlpipeError):
                    self._take(done)

    def _advance(self) -> None:
        """Opens and finishes steps until nothing changes, then starts as many units as the resources allow."""
        changed = True
        while changed:
            changed = False
            for state in list(self.states.values()):
                changed = self._open(state) or self._finish_if_complete(state) or changed
        while (one := self.executor.pick(self._wanting())) is not None:
            state = self.states[one.name]
            self._start(state, state.todo.pop(0))

    def _wanting(self) -> list[PlannedStep]:
        """Returns steps with a unit ready: gather steps first (whole branches wait for them), then the most downstream."""
        ready = [s.one for s in reversed(self.states.values()) if s.todo]
        return sorted(ready, key=lambda one: not is_gather(one))

    def _open(self, state: State) -> bool:
        """Opens a step, so that it accepts input shards, if its inputs allow it. Returns True if something changed."""
        one = state.one
        if state.opened or any(not p.is_done for p in one.artifact_steps):
            return False
        inputs_done = all(p.is_done for p in one.above)
        counts = [self._expected(p) for p in one.above]
        if not inputs_done and (is_gather(one) or None in counts):
            return False
        if is_gather(one) and self._is_being_made(state):
            return False
        state.opened = True
        if inputs_done:
            look(one, self.store, strict=self.parts.strict)
            if one.is_done:  # the upstream steps ran again with identical results
                self._finished(state)
                return True
        state.expected = 1 if is_gather(one) else sum(c or 0 for c in counts)
        if is_gather(one):
            self._open_gather(state)
            return True
        self.executor.expect(one)
        self.watcher.started(one, state.expected)
        self.store.remove(f"{one.folder}/manifest.json")  # outdated: shards may be replaced from now on
        sweep(self.store, one.folder)
        self._record_step(one)
        state.have, one.found = one.found, {}
        state.sizes = self.store.sizes(one.folder) if state.have else {}
        for above in one.above:
            for index, shard in self._ready(above).items():
                self._pass_on(above, state, index, shard)
        return True

    def _is_being_made(self, state: State) -> bool:
        """Returns True if a running gather step computes the same from the same inputs; its result will be adopted."""
        if state.gathers is None:
            state.gathers = (state.one.keyed.stage_key, inputs_digest(state.one))
        first = self._gathering.setdefault(state.gathers, state)
        return first is not state and first.one.name in self.states

    def _expected(self, one: PlannedStep) -> int | None:
        if one.is_done:
            return one.manifest.num_shards if one.manifest else 0
        return None if is_gather(one) or one.name not in self.states else self.states[one.name].expected

    def _record_step(self, one: PlannedStep) -> None:
        folders = tuple(p.folder for p in one.above)
        write_step_file(self.store, one.keyed, folders, one.schema_out)

    def _open_gather(self, state: State) -> None:
        """Adopts the same finished step from another folder if there is one, else queues it to run."""
        one, reuse = state.one, self.parts.reuse
        self.executor.expect(one)
        self.watcher.started(one, 1)
        self._record_step(one)
        found = reuse.adopt_step(one.keyed, inputs_digest(one)) if reuse else None
        if found is None:
            state.todo.append(-1)
            return
        manifest, receipts = found
        for receipt in receipts:
            self.watcher.shard(one, receipt, True)
        self._commit(state, receipts, dict(manifest.artifacts), manifest.sources)

    def _ready(self, one: PlannedStep) -> dict[int, Shard]:
        receipts = {r.index: r for r in one.receipts} if one.is_done else self.states[one.name].out
        return {k: receipts[k].shard for k in sorted(receipts)}

    def _pass_on(self, above: PlannedStep, state: State, index: int, shard: Shard) -> None:
        """Gives a shard of `above` to a step as input. With several inputs, shard numbers continue from one to the next."""
        before = state.one.above[: state.one.above.index(above)]
        index += sum(self._expected(p) or 0 for p in before)
        state.inputs[index] = shard
        receipt = self._reused(state, self._map_task(state, index))
        if receipt is None:
            state.todo.append(index)
        else:
            self._shard_done(state, receipt, reused=True)

    def _reused(self, state: State, task: ShardTask) -> Receipt | None:
        """Returns the receipt of a shard in the step's folder or adopted from another; None if it must be computed."""
        one = state.one
        wanted = made_from(task.key, task.input, task.stage.READS_HEAVY, task.artifacts_digest)
        mine = state.have.get(task.index)
        heavy = heavy_pointers(task)
        if mine and mine.made_from == wanted and self._is_reusable(state, mine):
            heavy = own_digest(heavy, mine.shard)
            return self._with_heavy(mine, heavy, one.folder)
        reuse = self.parts.reuse
        return reuse.adopt(one.keyed, wanted, task.index, heavy) if reuse else None

    def _is_reusable(self, state: State, mine: Receipt) -> bool:
        """Returns True if the shard's file has its recorded size and, with `strict`, was made by the current code."""
        is_whole = state.sizes.get(f"{mine.index:06d}.parquet") == mine.bytes
        return is_whole and not (self.parts.strict and mine.source != state.one.keyed.source)

    def _with_heavy(self, receipt: Receipt, heavy: tuple[Heavy, ...], folder: str) -> Receipt:
        """Returns the receipt with current pointers to its heavy columns, whose shard may have been recomputed."""
        if receipt.shard.heavy == heavy:
            return receipt
        receipt = dataclasses.replace(receipt, shard=dataclasses.replace(receipt.shard, heavy=heavy))
        write_receipt(self.store, folder, receipt)
        return receipt

    def _shard_done(self, state: State, receipt: Receipt, *, reused: bool) -> None:
        state.out[receipt.index] = receipt
        state.num_faults += receipt.num_faults
        state.any_good = state.any_good or receipt.num_faults < receipt.rows_in
        self.watcher.shard(state.one, receipt, reused)
        state.check_rate(self.store)
        for other in list(self.states.values()):
            if other.opened and state.one in other.one.above and not is_gather(other.one):
                self._pass_on(state.one, other, receipt.index, receipt.shard)

    def _map_task(self, state: State, index: int) -> ShardTask:
        if state.base is None:
            state.base = self._base_task(state)
        shard = state.inputs[index]
        key = shard_key(state.one.keyed.stage_key, shard.key)
        return dataclasses.replace(state.base, index=index, input=shard, key=key)

    def _base_task(self, state: State) -> ShardTask:
        one = state.one
        return ShardTask(
            store=self.parts.hooks.reading(self.store, one.keyed.step.resources),
            step=one.name,
            stage=resolve_stage(one, self.store),
            schema_in=one.schema_in,
            schema_out=one.schema_out,
            index=-1,
            input=Shard(path="", num_rows=0, digest=""),
            folder=one.folder,
            key="",
            hooks=self.parts.hooks,
            artifacts_digest=artifacts_digest(one),
            max_reject_rate=state.max_reject_rate,
            torch_threads=one.keyed.step.torch_threads,
            deadline_s=one.keyed.step.row_group_timeout_s,
        )

    def _gather_task(self, one: PlannedStep) -> GatherTask:
        store = self.parts.hooks.reading(self.store, one.keyed.step.resources)
        return GatherTask(
            store=store,
            step=one.name,
            stage=resolve_stage(one, self.store),
            inputs=tuple(p.dataset(store) for p in one.above),
            schema_out=one.schema_out,
            folder=one.folder,
            inputs_digest=inputs_digest(one),
            hooks=self.parts.hooks,
            shard_rows=one.keyed.step.shard_rows,
            torch_threads=one.keyed.step.torch_threads,
        )

    def _start(self, state: State, index: int) -> None:
        state.running.add(index)
        state.attempts[index] += 1
        self.watcher.begun(state.one, index, state.inputs[index].num_rows if index >= 0 else 0)
        if index < 0:
            self.executor.submit(state.one, Unit(state.one.name, -1), self._gather_task(state.one))
            return
        task = self._map_task(state, index)
        if index in state.have:
            self.store.remove(receipt_path(state.one.folder, index))
        task = dataclasses.replace(
            task,
            attempt=state.attempts[index],
            isolate=state.deaths[index] >= MAX_DEATHS,
            num_rows_step=state.num_rows,
            num_rows_guess=state.num_rows_guess,
            any_good=state.any_good,
        )
        self.executor.submit(state.one, Unit(state.one.name, index), task)

    def _take(self, done: UnitResult) -> None:
        state = self.states[done.unit.step]
        state.running.discard(done.unit.index)
        if isinstance(done.result, BaseException):
            self._failed(state, done.unit.index, done.result)
        elif isinstance(done.result, GatherResult):
            self._commit(state, done.result.receipts, done.result.artifacts, done.result.sources)
        else:
            self._shard_done(state, done.result, reused=False)

    def _failed(self, state: State, index: int, error: BaseException) -> None:
        if isinstance(error, (WorkerDied, AttemptFailed)):
            retry, error = self._should_retry(state, index, error)
            if retry:
                state.todo.insert(0, index)
                return
        where = f"shard {index} of step {state.one.name!r}" if index >= 0 else f"step {state.one.name!r}"
        if isinstance(error, (StepFailed, VlpipeError)):
            raise type(error)(f"{where}: {error}") if type(error) in (StepFailed, VlpipeError) else error
        text = explain(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        if is_out_of_memory(error):
            text += "; no row was rejected for it. Smaller batches, if the stage has a batch_size, need less memory"
        raise StepFailed(f"{where} failed: {text}") from error

    def _should_retry(
        self, state: State, index: int, error: WorkerDied | AttemptFailed
    ) -> tuple[bool, StepFailed]:
        """Returns (retry the failed unit?, error if not). Deaths that the unit did not cause do not count as attempts."""
        if isinstance(error, WorkerDied) and error.innocent:
            state.attempts[index] -= 1
            state.lost[index] += 1
            return state.lost[index] < MAX_LOST, StepFailed(f"{error}, {MAX_LOST} times")
        state.deaths[index] += isinstance(error, WorkerDied)
        allowed = MAX_ATTEMPTS + (state.deaths[index] >= MAX_DEATHS)
        retry = state.attempts[index] < allowed
        return retry, StepFailed(f"{error}, in each of {allowed} attempts")

    def _finish_if_complete(self, state: State) -> bool:
        one = state.one
        if one.is_done or is_gather(one) or not state.opened or not all(p.is_done for p in one.above):
            return False
        if len(state.out) < sum(self._expected(p) or 0 for p in one.above):
            return False
        state.check_rate(self.store)
        self._commit(state, [state.out[k] for k in sorted(state.out)], {})
        return True

    def _commit(
        self, state: State, receipts: list[Receipt], artifacts: dict[str, str], sources: Sequence[str] = ()
    ) -> None:
        one = state.one
        drop_surplus(self.store, one.folder, len(receipts))
        sweep(self.store, one.folder)
        manifest = make_manifest(
            one.keyed,
            one.schema_out,
            inputs=tuple(p.folder for p in one.above),
            inputs_digest=inputs_digest(one),
            read=read_digests(one),
            receipts=receipts,
            artifacts=artifacts,
            sources=sources,
        )
        write_manifest(self.store, one.folder, manifest, receipts)
        if self.parts.reuse:
            self.parts.reuse.note(one.keyed.stage_key, one.folder)
        self.store.remove(f"{one.folder}/work")  # after the manifest: a run killed before that needs it
        one.finish(manifest, receipts)
        one.warning = stale_source(one, manifest.sources)
        self._finished(state)

    def _finished(self, state: State) -> None:
        self.executor.release(state.one)
        del self.states[state.one.name]
        self.watcher.finished(state.one)
        if all(s.opened for s in self.states.values() if state.one in s.one.above):
            state.one.let_go()
