"""What a death means: an innocent one is no attempt, one for want of memory is; and who may use a GPU under `--local`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from helpers import planned, rows, run

from vlpipe.pipeline.engine.assembly import new_run
from vlpipe.pipeline.engine.executor import MAX_LOST, UnitResult, Watcher, WorkerDied
from vlpipe.pipeline.engine.local_executor import LocalExecutor
from vlpipe.pipeline.engine.worker.device import device_of_step
from vlpipe.pipeline.engine.worker.map_shard import ShardTask
from vlpipe.pipeline.errors import StepFailed, VlpipeError
from vlpipe.pipeline.services.server import Services

THREE = """
steps:
  numbers: {use: "toys:Numbers", num_rows: 15, shard_rows: 5}
  b: {use: "toys:Breaks", from: numbers}
"""


class Dying(LocalExecutor):
    """Workers of shard 1 of step b die so often, unless the shard is run in isolation."""

    def __init__(self, deaths: int, *, innocent: bool) -> None:
        super().__init__(Services())
        self.deaths, self.innocent = deaths, innocent
        self.ran: Counter[bool] = Counter()  # isolated or not

    def wait(self, timeout_s: float) -> list[UnitResult]:
        unit, task, _ = self._queue[0]
        if isinstance(task, ShardTask) and (unit.step, unit.index) == ("b", 1):
            self.ran[task.isolate] += 1
            if self.deaths and not task.isolate:
                self.deaths -= 1
                self._queue.popleft()
                return [UnitResult(unit, WorkerDied("the worker died: Test", innocent=self.innocent))]
        return super().wait(timeout_s)


def go(folder: Path, executor: LocalExecutor, text: str = THREE) -> None:
    steps, store = planned(folder, text)
    try:
        new_run(steps, store, executor, Watcher()).go()
    finally:
        executor.close()


def test_a_shard_that_went_down_with_others_is_not_given_up_after_three_times(tmp_path: Path) -> None:
    executor = Dying(MAX_LOST - 1, innocent=True)
    go(tmp_path, executor)
    assert executor.ran == {False: MAX_LOST}


def test_a_shard_that_goes_down_with_others_for_ever_is_the_steps_error(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match=f"shard 1 of step 'b': the worker died: Test, {MAX_LOST} times"):
        go(tmp_path, Dying(1000, innocent=True))


def test_a_shard_whose_workers_lack_memory_is_isolated_in_the_end(tmp_path: Path) -> None:
    executor = Dying(1000, innocent=False)
    go(tmp_path, executor)
    assert executor.ran == {False: 2, True: 1}


def test_ray_counts_death_for_want_of_memory_as_the_tasks_own() -> None:
    import ray

    from vlpipe.pipeline.engine.on_ray.executor import died

    assert not died(ray.exceptions.OutOfMemoryError("low on memory")).innocent
    assert not died(ray.exceptions.WorkerCrashedError()).innocent
    assert died(ray.exceptions.NodeDiedError("gone")).innocent
    assert died(ray.exceptions.TaskUnschedulableError("its node left")).innocent


PLACED = """
steps:
  numbers: {use: "toys:Numbers", num_rows: 2}
  a: {use: "toys:PlacedInActor", from: numbers}
  b: {use: "toys:Placed", from: numbers%s}
"""


def test_a_step_that_asks_for_no_gpu_gets_none_in_one_process(tmp_path: Path) -> None:
    steps = run(tmp_path, PLACED % "")
    for name in "ab":
        assert rows(tmp_path, steps[name])["visible"].to_pylist() == ["", ""]
        assert rows(tmp_path, steps[name])["device"].to_pylist() == ["cpu", "cpu"]


def test_a_step_that_asks_for_a_gpu_gets_it_in_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    steps = run(tmp_path, PLACED % ", resources: {gpus: 1}")
    assert rows(tmp_path, steps["a"])["device"].to_pylist() == ["cpu", "cpu"]
    assert rows(tmp_path, steps["b"])["device"].to_pylist() == ["cuda", "cuda"]
    assert device_of_step() == "cuda"  # outside a run what there is may be used


def test_a_gpu_that_is_not_there_is_said_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        VlpipeError, match=r"step 'b' asks for 1 GPU, torch finds 0 .* --set b.resources.gpus=0"
    ):
        run(tmp_path, PLACED % ", resources: {gpus: 1}")
    assert not list((tmp_path / "root").glob("numbers-*"))


def test_training_on_a_gpu_that_the_step_does_not_ask_for_is_said_before_any_work(tmp_path: Path) -> None:
    text = """
steps:
  numbers: {use: "toys:Numbers", num_rows: 2}
  train: {use: "toys:Launches", from: numbers, gpu: true}
"""
    with pytest.raises(
        VlpipeError, match=r"step 'train' has `gpu: true` but asks for no GPU; add `resources: "
    ):
        run(tmp_path, text)
    assert not list((tmp_path / "root").glob("numbers-*"))
