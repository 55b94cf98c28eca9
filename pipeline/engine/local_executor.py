"""Executor of `--local`: runs every unit in this process, one after another. The output bytes are the same as on Ray."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from vlpipe.pipeline.engine.executor import MAX_DEATHS, Unit, UnitResult
from vlpipe.pipeline.engine.planned import PlannedStep
from vlpipe.pipeline.engine.records.receipts import Receipt
from vlpipe.pipeline.engine.worker import device
from vlpipe.pipeline.engine.worker.gather import GatherResult, GatherTask, run_gather
from vlpipe.pipeline.engine.worker.map_shard import ShardTask, opening, run_shard
from vlpipe.pipeline.engine.worker.step_end import step_ended
from vlpipe.pipeline.service import ServiceHost
from vlpipe.pipeline.stage import Work
from vlpipe.pipeline.steps.step import Resources
from vlpipe.pipeline.storage.store import Store


class LocalExecutor:
    """Runs each unit inside `wait`. A stage with weights is opened once and stays open until its step is done."""

    def __init__(self, services: ServiceHost) -> None:
        self._queue: deque[tuple[Unit, ShardTask | GatherTask, Resources]] = deque()
        self._open: dict[str, tuple[ExitStack, Work]] = {}
        self._services = services
        self._hidden = ExitStack()

    def check(self, steps: Sequence[PlannedStep], store: Store) -> list[str]:
        """Returns errors for steps that request more GPUs than torch finds. If no step requests one, GPUs are hidden."""
        if not any(one.keyed.step.resources.gpus for one in steps):
            self._hidden.enter_context(device.hidden_gpus())
        return self.misfits(steps)

    def misfits(self, steps: Sequence[PlannedStep]) -> list[str]:
        """Returns errors for steps that request more GPUs than torch finds."""
        asking = [one for one in steps if one.keyed.step.resources.gpus]
        num = device.num_gpus() if asking else 0
        return [
            f"step {one.name!r} asks for {one.keyed.step.resources.gpus:g} GPU, torch finds {num} on this machine; "
            f"--set {one.name}.resources.gpus=0 runs it on the CPU"
            for one in asking
            if one.keyed.step.resources.gpus > num
        ]

    def expect(self, one: PlannedStep) -> None:
        """Does nothing: units run one at a time."""

    def pick(self, wanting: Sequence[PlannedStep]) -> PlannedStep | None:
        return wanting[0] if wanting and not self._queue else None

    def stuck(self, wanting: Sequence[PlannedStep]) -> str:
        return f"no step can start, but these are not done: {', '.join(one.name for one in wanting)}"

    def submit(self, one: PlannedStep, unit: Unit, task: ShardTask | GatherTask) -> None:
        if isinstance(task, ShardTask):
            task = dataclasses.replace(
                task, shared=self._services.address(one.name, task.stage.service, task.store)
            )
        self._queue.append((unit, task, one.keyed.step.resources))

    def wait(self, timeout_s: float) -> list[UnitResult]:
        unit, task, resources = self._queue.popleft()
        try:
            with device.granted(resources.gpus):
                return [UnitResult(unit, self._run(task))]
        except Exception as error:  # the run loop decides how to handle it
            return [UnitResult(unit, error)]

    def _run(self, task: ShardTask | GatherTask) -> Receipt | GatherResult:
        if isinstance(task, GatherTask):
            return run_gather(task)
        with _counting_deaths(task) as num_deaths:
            if num_deaths >= MAX_DEATHS:  # as on Ray: find and name the rows that kill the process
                return run_shard(dataclasses.replace(task, isolate=True))
            return run_shard(task, self._work(task))

    def _work(self, task: ShardTask) -> Work | None:
        if not task.stage.LOADS_WEIGHTS:
            return None
        if task.step not in self._open:
            stack = ExitStack()
            self._open[task.step] = (stack, stack.enter_context(opening(task)))
        return self._open[task.step][1]

    def release(self, one: PlannedStep) -> None:
        self._services.drop(one.name)
        if one.name in self._open:
            self._open.pop(one.name)[0].close()
        step_ended()

    def drain(self, grace_s: float) -> list[UnitResult]:
        """Returns an empty list: nothing runs in the background."""
        return []

    def close(self) -> None:
        for stack, _ in self._open.values():
            stack.close()
        self._open.clear()
        step_ended()
        self._services.close()
        self._hidden.close()


@contextmanager
def _counting_deaths(task: ShardTask) -> Iterator[int]:
    """Yields how many earlier runs died while computing this shard. The count is in a file, which stays if this one dies."""
    if not task.store.is_local:
        yield 0
        return
    note = Path(task.store.path(f"{task.folder}/work/{task.index:06d}.deaths"))
    try:
        num_deaths = int(note.read_text() or 0)
    except FileNotFoundError:
        num_deaths = 0
        note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(str(num_deaths + 1))
    try:
        yield num_deaths
    finally:
        note.unlink()
