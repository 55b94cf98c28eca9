"""Runs two planned steps with nothing but the runner and the local executor: `python kernel_alone.py ROOT`.

Prints the rows of the second step, and which parts of the project were imported although a run does not need them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from vlpipe.pipeline.engine.executor import Watcher
from vlpipe.pipeline.engine.local_executor import LocalExecutor
from vlpipe.pipeline.engine.parts import Parts
from vlpipe.pipeline.engine.planned import PlannedStep
from vlpipe.pipeline.engine.records.step_keys import StepKeys
from vlpipe.pipeline.engine.runner import Run
from vlpipe.pipeline.stage import GatherStage, Job, MapStage, Stage, Work
from vlpipe.pipeline.steps.step import Resources, Step
from vlpipe.pipeline.storage.store import Store

NUMBERS = pa.schema([("id", pa.string()), ("n", pa.int64())])
ENGINE = "vlpipe.pipeline.engine"
NOT_NEEDED = (
    *("ray", "yaml", "vlpipe.pipeline.workflow", "vlpipe.pipeline.services"),
    *(f"{ENGINE}.{name}" for name in ("plan", "adopt", "assembly", "on_ray", "locking", "worker_hooks")),
)


@dataclass(frozen=True, kw_only=True)
class Count(GatherStage):
    ROWS_ARE: ClassVar[str] = "numbers"

    def run(self, job: Job) -> None:
        job.emit(pa.table({"id": list("abcde"), "n": range(5)}, NUMBERS))


@dataclass(frozen=True, kw_only=True)
class Double(MapStage):
    @contextmanager
    def open(self) -> Iterator[Work]:
        yield lambda rows: rows.set_column(1, "n", pa.array([2 * n for n in rows["n"].to_pylist()]))


class Nothing:
    """The parts of a run that does nothing around its stages, and has no services."""

    def reading(self, store: Store, resources: Resources) -> Store:
        return store

    def running_code(self, stage: Stage) -> str:
        return ""

    recorded_code = running_code

    def opened(self, stage: MapStage, *_: Any, **__: Any) -> AbstractContextManager[Work]:
        return stage.open()

    def prepared(self, stage: Any, torch_threads: int) -> Any:
        return stage

    def captured(self, store: Store, rel: str) -> AbstractContextManager[None]:
        return nullcontext()

    def saying(self, store: Store, folder: str) -> Callable[[str], None]:
        return print

    def noted(self, store: Store, folder: str, index: int, batches: Iterator[pa.Table]) -> Iterator[pa.Table]:
        return batches

    def excluded(self, store: Store) -> Nothing:
        return self

    def split(self, rows: pa.Table) -> tuple[pa.Table, list[Any]]:
        return rows, []

    def address(self, *_: Any) -> None:
        return None

    def drop(self, step: str) -> None: ...

    def close(self) -> None: ...


def planned(store: Store, stage: Stage, above: tuple[PlannedStep, ...] = ()) -> PlannedStep:
    name = type(stage).__name__
    step = Step(
        name=name,
        use=name,
        stage=stage,
        inputs=tuple(one.name for one in above),
        resources=Resources(),
        shard_rows=2,
        params={},
        line=1,
    )
    keyed = StepKeys(
        step=step,
        identity=(name, 1),
        step_key=name,
        stage_key=name,
        files=(),
        marks=(),
        source="",
        folder=f"{name}-00000000",
    )
    return PlannedStep(keyed, above, (), NUMBERS, NUMBERS, store)


def main(root: str) -> None:
    store, nothing = Store(root), Nothing()
    count = planned(store, Count())
    double = planned(store, Double(), (count,))
    executor = LocalExecutor(nothing)
    Run([count, double], store, executor, Watcher(), Parts(nothing, None, lambda: None)).go()
    executor.close()
    print(double.dataset(store).table()["n"].to_pylist(), len(double.shards))
    loaded = [name for name in NOT_NEEDED if name in sys.modules]
    print(loaded)


if __name__ == "__main__":
    main(sys.argv[1])
