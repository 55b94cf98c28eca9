"""Interfaces of the run loop: an `Executor` runs units, a `Watcher` is notified of progress."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from vlpipe.pipeline.engine.plan import PlannedStep
from vlpipe.pipeline.engine.records.receipts import Receipt
from vlpipe.pipeline.engine.worker.gather import GatherResult, GatherTask
from vlpipe.pipeline.engine.worker.map_shard import ShardTask
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.stage import GatherStage
from vlpipe.pipeline.storage.store import Store

MAX_ATTEMPTS = 3
MAX_DEATHS = 2  # after so many worker deaths a shard runs row by row in its own process
MAX_LOST = 10  # max times a shard is lost with a node or by another shard's worker death


class WorkerDied(VlpipeError):
    """The process that ran a task died. innocent: it died with its node or because of another shard.

    A death for lack of memory is not innocent: if it repeats, the shard is run row by row.
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
        """Reasons why these steps cannot run here, one sentence each. Called once, before any work."""

    def expect(self, one: PlannedStep) -> None:
        """Announce that units of a step may be submitted from now on."""

    def pick(self, wanting: Sequence[PlannedStep]) -> PlannedStep | None:
        """The step whose next unit starts now; None if there is no room. The caller then calls `submit` for that unit.

        wanting: steps with a unit ready, most urgent first.
        """

    def submit(self, one: PlannedStep, unit: Unit, task: ShardTask | GatherTask) -> None: ...

    def wait(self, timeout_s: float) -> list[UnitResult]:
        """Results of units that have ended. Blocks for at most about `timeout_s` seconds."""

    def stuck(self, wanting: Sequence[PlannedStep]) -> str:
        """Called while nothing runs and nothing starts: why that cannot change; empty if it still may."""

    def release(self, one: PlannedStep) -> None:
        """Announce that no more units of a step will be submitted."""

    def drain(self, grace_s: float) -> list[UnitResult]:
        """Results of units that end within `grace_s` seconds. Nothing new starts."""

    def close(self) -> None: ...


@dataclass
class Watcher:
    """Progress callbacks; the command line draws them.

    started: (step, number of shards); begun: (step, shard number, input rows); shard: (step, receipt, was it reused);
    tick: once per iteration of the run loop; stopping: (error that ends the run, units that get a grace to finish).
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
    """Errors for steps whose stage has `gpu: true` but that request no GPU: only steps that request a GPU may use one."""
    return [
        f"step {one.name!r} has `gpu: true` but asks for no GPU; add `resources: {{gpus: 1}}`"
        for one in steps
        if isinstance(stage := one.keyed.step.stage, GatherStage)
        and stage.gpu
        and not one.keyed.step.resources.gpus
    ]
