"""Whatever ends a retry, and whenever: what the world gave once is there, and a row's code and log are told rightly."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from cli_helpers import Runs, vlpipe
from kill_points import forked, kill_at

from vlpipe.pipeline.change import retry as again
from vlpipe.pipeline.engine.assembly import local_executor
from vlpipe.pipeline.engine.locking.lock import locked
from vlpipe.pipeline.engine.plan import plan
from vlpipe.pipeline.engine.records.receipts import read_unfinished
from vlpipe.pipeline.inspect.on_disk import read_step
from vlpipe.pipeline.storage.store import Store
from vlpipe.pipeline.workflow.load import Workflow

TEXT = """
name: world
steps:
  numbers: {use: "toys:Numbers", num_rows: 12, shard_rows: 4}
  ask: {use: "look_toys:Ask", from: numbers, up: UP}
"""
LATER = {1, 2, 9}  # come up when everything else is down


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The world gave 9 of 12 rows; now it gives only the other 3."""
    folder = tmp_path_factory.mktemp("asked")
    up = folder / "up"
    up.write_text(" ".join(str(n) for n in range(12) if n not in LATER))
    runs = Runs(folder, TEXT.replace("UP", str(up)))
    runs("run", "--local")
    up.write_text(" ".join(map(str, LATER)))
    return runs


def copied(asked: Runs, folder: Path) -> Runs:
    runs = Runs(folder, asked.file.read_text())
    shutil.copytree(asked.root, runs.root)
    return runs


def retry(runs: Runs) -> None:
    store = Store(str(runs.root))
    with locked(store):
        steps = plan(Workflow.load(str(runs.file), root=str(runs.root)), store)
        again.retry(steps, store, "ask", ["down"], local_executor())


def rows(runs: Runs) -> set[int]:
    store = Store(str(runs.root))
    record = read_step(store, runs.step("ask").name)
    assert record.manifest is not None
    return {n for r in record.receipts for n in pq.read_table(store.path(r.shard.path))["n"].to_pylist()}


def killed(runs: Runs, point: int) -> int:
    def work() -> int:
        kill_at(point)
        retry(runs)
        return 0

    return forked(work)


@pytest.mark.slow
def test_nothing_is_lost_by_a_kill_at_enumerated_points(asked: Runs, tmp_path: Path) -> None:
    """After the kill only the three rows answer: each other one must come from what lay there before.

    Every second one of the killed retries is followed by another retry, and not by a run only.
    """
    first = set(range(12)) - LATER
    num_killed, some_back = 0, False
    for point in range(1, 400, 11):
        folder = tmp_path / str(point)
        folder.mkdir()
        runs = copied(asked, folder)
        status = killed(runs, point)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        num_killed += 1
        if point % 2:
            runs("retry", "ask", "--why", "down", "--local", code=(0, 1))  # 1: all of it was done
        runs("run", "--local")
        assert rows(runs) >= first, point
        some_back = some_back or rows(runs) == set(range(12))
        assert not list(runs.root.glob("*before_retry*"))
        assert vlpipe("verify", runs.root)[-1].endswith("all match their records")
        shutil.rmtree(folder)
    assert num_killed >= 5
    assert some_back


def test_the_log_of_other_rows_stays(asked: Runs, tmp_path: Path) -> None:
    runs = copied(asked, tmp_path)
    runs("retry", "ask", "--why", "down", "--local")
    lines = [
        json.loads(line) for path in sorted(runs.step("ask").glob("_log/*.jsonl")) for line in path.open()
    ]
    assert {line["id"]: line["answered"] for line in lines} == {f"id{n}": True for n in range(12)}


CODE = """
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa

from vlpipe.pipeline.errors import RowFault
from vlpipe.pipeline.shard import with_field
from vlpipe.pipeline.stage import MapStage


@dataclass(frozen=True, kw_only=True)
class Says(MapStage):
    MAX_REJECT_RATE = 1.0

    def schema(self, inp):
        return with_field(inp, pa.field("said", pa.string()))

    @contextmanager
    def open(self):
        def work(table):
            if FAILS and 5 in table["n"].to_pylist():
                raise RowFault("odd")
            return table.append_column("said", pa.array([SAID] * table.num_rows))
        yield work
"""


def cli(folder: Path, *args: str) -> str:
    command = [sys.executable, "-m", "vlpipe.pipeline.cli.main", *args]
    env = {**os.environ, "COLUMNS": "300"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def change(path: Path, said: str, fails: bool) -> None:
    path.write_text(f"SAID, FAILS = {said!r}, {fails}\n{CODE}")


@pytest.mark.slow
def test_a_shard_of_old_and_new_code_names_both(tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text(
        'name: code\nsteps:\n  numbers: {use: "toys:Numbers", num_rows: 8, shard_rows: 4}\n'
        '  says: {use: "says_what:Says", from: numbers}\n'
    )
    change(tmp_path / "says_what.py", "old", fails=True)
    where = ["w.yaml", "--root", "root"]
    cli(tmp_path, "run", *where, "--local")
    (step,) = (tmp_path / "root").glob("says-*")
    sources = [r.source for r in read_unfinished(Store(str(tmp_path / "root")), step.name).values()]
    change(tmp_path / "says_what.py", "new", fails=False)
    assert "1 now in the output" in cli(
        tmp_path, "retry", *where[:1], "says", *where[1:], "--why", "odd", "--local"
    )
    now = [r.source for r in read_unfinished(Store(str(tmp_path / "root")), step.name).values()]
    assert now[0] == sources[0]
    assert sources[1] in now[1].split("+")
    assert len(now[1].split("+")) == 2
    assert "some of its rows were made by different code" in cli(
        tmp_path, "plan", *where
    ) or "made by different code" in cli(tmp_path, "plan", *where)
