"""Retried rows come out as if they had never failed; what goes wrong on the way leaves a step that can go on."""

import errno
from pathlib import Path

import pytest
from cli_helpers import Runs, vlpipe
from helpers import left

from vlpipe.pipeline.change import retry
from vlpipe.pipeline.engine.executor import Unit, UnitResult
from vlpipe.pipeline.engine.local_executor import LocalExecutor
from vlpipe.pipeline.engine.plan import plan
from vlpipe.pipeline.engine.planned import PlannedStep
from vlpipe.pipeline.engine.worker.gather import GatherTask
from vlpipe.pipeline.engine.worker.map_shard import ShardTask
from vlpipe.pipeline.errors import StepFailed
from vlpipe.pipeline.services.server import Services
from vlpipe.pipeline.storage.store import Store
from vlpipe.pipeline.workflow.load import Workflow

TEXT = """
name: toy
steps:
  numbers: {use: "toys:Numbers", num_rows: 20, shard_rows: 6}
  shaky: {use: "toys:Breaks", from: numbers, bad: [3, 7, 19], typed: true, max_reject_rate: RATE, mend: MEND}
  scale: {use: "toys:Scale", from: shaky, by: 3}
  sum: {use: "toys:Sum", from: scale}
"""


def toy(folder: Path, rate: float = 0.5) -> tuple[Runs, Path]:
    folder.mkdir(exist_ok=True)
    mend = folder / "mend"
    return Runs(folder, TEXT.replace("MEND", str(mend)).replace("RATE", str(rate))), mend


def steps_of(runs: Runs) -> tuple[list[PlannedStep], Store]:
    store = Store(str(runs.root))
    return plan(Workflow.load(str(runs.file), root=str(runs.root)), store), store


@pytest.mark.slow
@pytest.mark.parametrize("ray", [False, True], ids=["local", "ray"])
def test_the_same_bytes_as_if_nothing_had_failed(
    tmp_path: Path, ray: bool, request: pytest.FixtureRequest
) -> None:
    healthy, mend = toy(tmp_path / "healthy")
    mend.touch()
    healthy("run", "--local")
    runs, mend = toy(tmp_path / "shaky")
    runs("run", "--local")
    mend.touch()
    how = ["--address", request.getfixturevalue("two_cpus")] if ray else ["--local"]
    said = runs("retry", "shaky", "--why", "odd", *how)
    assert "shaky: 3 row(s) in 3 shard(s) retried, 3 now in the output" in said
    runs("run", "--local")
    files, wanted = left(runs.root), left(healthy.root)
    assert {n: d for n, d in files.items() if n.endswith(".parquet")} == {
        n: d for n, d in wanted.items() if n.endswith(".parquet")
    }
    assert vlpipe("verify", runs.root)[-1].endswith("all match their records")


def test_rows_that_fail_again_stay_rejects(tmp_path: Path) -> None:
    runs, _ = toy(tmp_path)
    runs("run", "--local")
    before = left(runs.root)
    said = runs("retry", "shaky", "--why", "odd", "--local")
    assert (
        "shaky: 3 row(s) in 3 shard(s) retried, 0 now in the output; still rejected in these shards: odd 3"
        in said
    )
    assert left(runs.root) == before
    assert "0 of 5 steps would run" in runs("plan")


def test_a_step_that_failed_for_too_many_faults_is_finished_by_retry(tmp_path: Path) -> None:
    runs, mend = toy(tmp_path, rate=0.05)
    assert "more than max_reject_rate 0.05 allows" in runs("run", "--local", code=1)[-1]
    mend.touch()
    assert "shaky: 3 row(s) in 3 shard(s) retried, 3 now in the output" in runs(
        "retry", "shaky", "--why", "odd", "--local"
    )
    assert "2 of 5 steps would run" in runs("plan")


def test_a_stage_that_loses_a_retried_row_is_refused(tmp_path: Path) -> None:
    mend = tmp_path / "mend"
    text = (
        "name: toy\nsteps:\n"
        '  numbers: {use: "toys:Numbers", num_rows: 4, shard_rows: 2}\n'
        f'  odd: {{use: "verb_toys:Forgets", from: numbers, mend: {mend}}}\n'
    )
    runs = Runs(tmp_path, text)
    runs("run", "--local")
    before = left(runs.root)
    mend.touch()
    assert (
        "breaks row conservation: 1 row(s) lost"
        in runs("retry", "odd", "--why", "odd", "--local", code=1)[-1]
    )
    assert left(runs.root) == before
    assert "0 of 3 steps would run" in runs("plan")


class FullDisk(LocalExecutor):
    """The second shard it is given finds no space."""

    def wait(self, timeout_s: float) -> list[UnitResult]:
        unit = self._queue[0][0]
        if unit.index == 1:
            self._queue.clear()
            return [UnitResult(unit, OSError(errno.ENOSPC, "No space left on device"))]
        return super().wait(timeout_s)


class Interrupted(LocalExecutor):
    """The person stops it while a shard is at work."""

    def submit(self, one: PlannedStep, unit: Unit, task: ShardTask | GatherTask) -> None:
        raise KeyboardInterrupt


def test_after_an_error_what_was_not_touched_counts_as_before(tmp_path: Path) -> None:
    runs, mend = toy(tmp_path)
    runs("run", "--local")
    mend.touch()
    steps, store = steps_of(runs)
    with pytest.raises(StepFailed, match="the disk is full"):
        retry.retry(steps, store, "shaky", ["odd"], FullDisk(Services()))
    receipts = sorted(p.name for p in (runs.step("shaky") / "_receipts").iterdir())
    assert receipts == [f"{k:06d}.json" for k in range(4)]
    said = runs("run", "--local")
    assert any(line.startswith("shaky: 4 shard(s), 4 reused, 20 rows in, 18 out") for line in said)


def test_what_was_at_work_when_it_was_stopped_does_not_count(tmp_path: Path) -> None:
    """A worker may be writing that shard at this moment: its old receipt must not speak for it. A copy does."""
    runs, mend = toy(tmp_path)
    runs("run", "--local")
    mend.touch()
    steps, store = steps_of(runs)
    with pytest.raises(KeyboardInterrupt):
        retry.retry(steps, store, "shaky", ["odd"], Interrupted(Services()))
    receipts = sorted(p.name for p in (runs.step("shaky") / "_receipts").iterdir())
    assert receipts == ["000001.json", "000002.json", "000003.json"]
    assert not (runs.step("shaky") / "manifest.json").exists()
    assert any(line.startswith("shaky: 4 shard(s), 4 reused") for line in runs("run", "--local"))
    assert not list(runs.root.glob("*before_retry*"))


def test_what_a_rule_filtered_is_not_run_again(tmp_path: Path) -> None:
    text = (
        "name: toy\nsteps:\n"
        '  numbers: {use: "toys:Numbers", num_rows: 8, shard_rows: 4}\n'
        '  every: {use: "toys:Every", from: numbers, k: 4}\n'
    )
    runs = Runs(tmp_path, text)
    runs("run", "--local")
    before = left(runs.root)
    assert runs("retry", "every", "--why", "not_kth", "--local", code=1)[-1] == (
        "the rows that step 'every' rejected with code 'not_kth' were filtered by a rule: they did not "
        "fail, so there is nothing to retry"
    )
    assert runs("retry", "every", "--why", "timeout", "--local", code=1)[-1] == (
        "step 'every' rejected no row with code 'timeout'; its rejects were all filtered by a rule"
    )
    assert left(runs.root) == before


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (("shaky", "--why", "od"), "step 'shaky' rejected no row with code 'od'; did you mean 'odd'?"),
        (("scale", "--why", "odd"), "step 'scale' rejected no row with code 'odd'; it has no rejects"),
        (
            ("sum", "--why", "odd"),
            "step 'sum' is a gather step, which reads all rows at once; `vlpipe retry` works on map steps only",
        ),
        (
            ("shak", "--why", "odd"),
            "there is no step 'shak'; did you mean 'shaky'?",
        ),
    ],
)
def test_mistakes(tmp_path: Path, args: tuple[str, ...], error: str) -> None:
    runs, _ = toy(tmp_path)
    runs("run", "--local")
    before = left(runs.root)
    assert runs("retry", *args, "--local", code=1)[-1] == error
    assert left(runs.root) == before
