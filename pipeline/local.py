"""`--local`: every unit in this process, one after the other, to the same bytes as on Ray."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from vlpipe.pipeline.gather import GatherTask, run_gather
from vlpipe.pipeline.plan import Planned
from vlpipe.pipeline.runner import MAX_DEATHS, Done, Unit
from vlpipe.pipeline.shared import Services
from vlpipe.pipeline.stage import Work
from vlpipe.pipeline.work import ShardTask, opening, run_shard


class LocalExecutor:
    """Runs a unit when it is waited for. A stage with weights is opened once and kept until its step is done."""

    def __init__(self) -> None:
        self._queue: deque[tuple[Unit, ShardTask | GatherTask]] = deque()
        self._open: dict[str, tuple[ExitStack, Work]] = {}
        self._services = Services()

    def check(self, steps: Sequence[Planned]) -> list[str]:
        return []

    def expect(self, one: Planned) -> None:
        """One unit runs at a time, whatever may come."""

    def room(self, one: Planned) -> bool:
        return not self._queue

    def submit(self, one: Planned, unit: Unit, task: ShardTask | GatherTask) -> None:
        if isinstance(task, ShardTask):
            task = dataclasses.replace(
                task, shared=self._services.address(one.name, task.stage.shared, task.store)
            )
        self._queue.append((unit, task))

    def wait(self, timeout_s: float) -> list[Done]:
        unit, task = self._queue.popleft()
        try:
            if isinstance(task, GatherTask):
                return [Done(unit, run_gather(task))]
            with _noted(task) as num_deaths:
                if num_deaths >= MAX_DEATHS:  # as on Ray: the rows that kill it are found, and named
                    return [Done(unit, run_shard(dataclasses.replace(task, isolate=True)))]
                return [Done(unit, run_shard(task, self._work(task)))]
        except Exception as error:  # the loop decides what it means
            return [Done(unit, error)]

    def _work(self, task: ShardTask) -> Work | None:
        if not task.stage.LOADS_WEIGHTS:
            return None
        if task.step not in self._open:
            stack = ExitStack()
            self._open[task.step] = (
                stack,
                stack.enter_context(opening(task)),
            )
        return self._open[task.step][1]

    def release(self, one: Planned) -> None:
        self._services.drop(one.name)
        if one.name in self._open:
            self._open.pop(one.name)[0].close()

    def drain(self, grace_s: float) -> list[Done]:
        """Nothing runs beside the loop."""
        return []

    def close(self) -> None:
        for stack, _ in self._open.values():
            stack.close()
        self._open.clear()
        self._services.close()


@contextmanager
def _noted(task: ShardTask) -> Iterator[int]:
    """How often a run died amid this shard; the note that says so stays when this one dies too."""
    if not task.store.is_local:
        yield 0
        return
    note = Path(task.store.path(f"{task.folder}/work/{task.index:06d}.deaths"))
    note.parent.mkdir(parents=True, exist_ok=True)
    num_deaths = int(note.read_text() or 0) if note.exists() else 0
    note.write_text(str(num_deaths + 1))
    try:
        yield num_deaths
    finally:
        note.unlink()
