"""Interfaces of the run loop: an `Executor` runs units (shards or gather steps), a `Watcher` is notified of progress."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from vlpipe.pipeline.engine.planned import PlannedStep
from vlpipe.pipeline.engine.records.receipts import Receipt
from vlpipe.pipeline.engine.worker.gather import GatherResult, GatherTask
from vlpipe.pipeline.engine.worker.map_shard import ShardTask
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.stage import GatherStage
from vlpipe.pipeline.storage.store import Store

MAX_ATTEMPTS = 3
MAX_DEATHS = 2  # after so many worker deaths a shard runs in its own process, to find the rows that kill it
MAX_LOST = 10  # max times a shard is lost because its node is lost or another shard kills its worker


class WorkerDied(VlpipeError):
    """The process that ran a task died. innocent: the task did not cause it; the node was lost or another shard did.

    A death for lack of memory is not innocent: if it repeats, the shard runs in its own process, to find the rows.
    """

    def __init__(self, text: str, *, innocent: bool) -> None:
        self.innocent = innocent
        super().__init__(text)


@dataclass(frozen=True)
class Unit:
    """One schedulable unit: a shard of a map step, or a whole gather step."""

    step: str
    index: int  # shard number; -1 for a gather step


@dataclass(frozen=True)
class UnitResult:
    """How a unit ended: a shard's receipt, a gather step's result, or the error that failed it."""

    unit: Unit
    result: Receipt | GatherResult | BaseException


class Executor(Protocol):
    """Runs units of steps, on this machine or on a cluster."""

    def check(self, steps: Sequence[PlannedStep], store: Store) -> list[str]:
        """Returns reasons why these steps cannot run with this executor, one sentence each. Called once, before any work."""

    def misfits(self, steps: Sequence[PlannedStep]) -> list[str]:
        """Returns reasons why these steps never find the resources that they request, one sentence each."""

    def expect(self, one: PlannedStep) -> None:
        """Called when units of a step may be submitted from now on."""

    def pick(self, wanting: Sequence[PlannedStep]) -> PlannedStep | None:
        """Returns the step whose next unit starts now; None if too few resources are free. The caller submits that unit.

        wanting: steps with a unit ready, most urgent first.
        """

    def submit(self, one: PlannedStep, unit: Unit, task: ShardTask | GatherTask) -> None: ...

    def wait(self, timeout_s: float) -> list[UnitResult]:
        """Returns results of units that have ended. Blocks for at most about `timeout_s` seconds."""

    def stuck(self, wanting: Sequence[PlannedStep]) -> str:
        """Returns why no unit can ever start; empty if one still may. Called while nothing runs and nothing starts."""

    def release(self, one: PlannedStep) -> None:
        """Called when no more units of a step will be submitted."""

    def drain(self, grace_s: float) -> list[UnitResult]:
        """Returns results of units that end within `grace_s` seconds. Nothing new starts."""

    def close(self) -> None: ...


@dataclass
class Watcher:
    """Progress callbacks; the command line draws them.

    started: (step, number of shards); begun: (step, shard number, input rows); shard: (step, receipt, was it reused);
    tick: once per iteration of the run loop; stopping: (error that ends the run, number of units that may still finish).
    """

    started: Callable[[PlannedStep, int | None], None] = lambda one, total: None
    begun: Callable[[PlannedStep, int, int], None] = lambda one, index, num_rows: (
        None
    )  # index: -1 for a gather step
    shard: Callable[[PlannedStep, Receipt, bool], None] = lambda one, receipt, reused: None
    finished: Callable[[PlannedStep], None] = lambda one: None
    tick: Callable[[], None] = lambda: None
    stopping: Callable[[BaseException, int], None] = lambda error, num_running: None


def unasked_gpus(steps: Sequence[PlannedStep]) -> list[str]:
    """Returns errors for steps whose stage has `gpu: true` but that request no GPU, and so may not use one."""
    return [
        f"step {one.name!r} has `gpu: true` but asks for no GPU; add `resources: {{gpus: 1}}`"
        for one in steps
        if isinstance(stage := one.keyed.step.stage, GatherStage)
        and stage.gpu
        and not one.keyed.step.resources.gpus
    ]
