"""What the loop of a run talks to: an executor that runs units, and a watcher that is told what happens."""

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
MAX_DEATHS = 2  # a shard that killed so many workers is run row by row in a process of its own
MAX_LOST = 10  # so often a shard may go down with a node or a neighbour


class WorkerDied(VlpipeError):
    """The process that ran a task is gone. `innocent`: it went with its node or with a neighbour, not by what it did.

    Death for want of memory is not innocent: a shard it keeps meeting is run row by row in the end.
    """

    def __init__(self, text: str, *, innocent: bool) -> None:
        self.innocent = innocent
        super().__init__(text)


@dataclass(frozen=True)
class Unit:
    """One thing that runs: a shard of a map step, or a whole gather step."""

    step: str
    index: int  # shard number; -1 for a gather step


@dataclass(frozen=True)
class UnitResult:
    unit: Unit
    result: Receipt | GatherResult | BaseException


class Executor(Protocol):
    """Where units run."""

    def check(self, steps: Sequence[PlannedStep], store: Store) -> list[str]:
        """Why these steps cannot run here, a sentence each. Called once, before any work."""

    def expect(self, one: PlannedStep) -> None:
        """Units of a step may come from now on."""

    def pick(self, wanting: Sequence[PlannedStep]) -> PlannedStep | None:
        """Of steps that have a unit ready, most urgent first, the one that starts one now; None: there is no room.

        `submit` of that unit follows.
        """

    def submit(self, one: PlannedStep, unit: Unit, task: ShardTask | GatherTask) -> None: ...

    def wait(self, timeout_s: float) -> list[UnitResult]:
        """What has ended, after at most about this long."""

    def stuck(self, wanting: Sequence[PlannedStep]) -> str:
        """Asked while nothing runs and nothing starts: why that will not change; empty while it may."""

    def release(self, one: PlannedStep) -> None:
        """No more units of a step will come."""

    def drain(self, grace_s: float) -> list[UnitResult]:
        """What ends within the grace; nothing is started any more."""

    def close(self) -> None: ...


@dataclass
class Watcher:
    """Told what happens; the command line draws it.

    `stopping`: the loop ends early by this error, and so many units that still run have a grace to finish.
    """

    started: Callable[[PlannedStep, int | None], None] = lambda one, total: None
    begun: Callable[[PlannedStep, int, int], None] = lambda one, index, num_rows: (
        None
    )  # a unit, -1 a gather step
    shard: Callable[[PlannedStep, Receipt, bool], None] = lambda one, receipt, reused: None
    finished: Callable[[PlannedStep], None] = lambda one: None
    tick: Callable[[], None] = lambda: None
    stopping: Callable[[BaseException, int], None] = lambda error, num_running: None


def unasked_gpus(steps: Sequence[PlannedStep]) -> list[str]:
    """A device is used only by a step that asks for one."""
    return [
        f"step {one.name!r} has `gpu: true` and asks for no GPU; add `resources: {{gpus: 1}}`"
        for one in steps
        if isinstance(stage := one.keyed.step.stage, GatherStage)
        and stage.gpu
        and not one.keyed.step.resources.gpus
    ]
