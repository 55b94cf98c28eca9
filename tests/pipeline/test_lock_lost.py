"""What a run does that lost its lock, and what never goes."""

import dataclasses
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lock_rounds
import pytest
from cli_helpers import Runs, vlpipe
from helpers import CHAIN, left, planned
from lock_records import DEAD_PID, ELSEWHERE, locks, put, quick, record, root  # noqa: F401
from moto_s3 import S3, s3, s3_server  # noqa: F401

from vlpipe.pipeline.engine.assembly import new_run
from vlpipe.pipeline.engine.executor import Watcher
from vlpipe.pipeline.engine.local_executor import LocalExecutor
from vlpipe.pipeline.engine.locking.lock import check, locked
from vlpipe.pipeline.engine.locking.lock_file import Record, newest, parse, rel_of
from vlpipe.pipeline.engine.records import progress_notes
from vlpipe.pipeline.engine.worker.map_shard import ShardTask, run_shard
from vlpipe.pipeline.errors import LockLost
from vlpipe.pipeline.services.server import Services
from vlpipe.pipeline.storage.store import Store

# --- a run that loses its lock ---


def test_a_lost_lock_stops_its_run_and_is_left_alone(quick: None, root: Store) -> None:
    other = record(**ELSEWHERE)
    began = time.monotonic()
    with pytest.raises(LockLost, match="lost the lock"), locked(root):
        work_until_stopped(root, other)
    assert time.monotonic() - began < 10
    assert root.read_bytes(rel_of(2)) == other.to_bytes()
    before = root.read_bytes(rel_of(1))
    time.sleep(0.3)
    assert root.read_bytes(rel_of(1)) == before  # no heartbeat comes after
    assert not parse(before).ended


def work_until_stopped(root: Store, other: Record) -> None:
    put(root, other, 2)
    until = time.monotonic() + 20
    while time.monotonic() < until:
        check(root)
        time.sleep(0.02)


def test_the_words_of_a_run_that_was_taken_over(quick: None, root: Store) -> None:
    with pytest.raises(LockLost) as lost, locked(root):
        put(root, record(**ELSEWHERE), 2)
    assert str(lost.value) == (
        f"lost the lock of {root.url}: process {DEAD_PID} on elsewhere has taken it over. Finished shards are kept; "
        "run again when no other run holds it"
    )


def test_a_lock_lost_in_the_last_moment_is_no_done(root: Store) -> None:
    for lose in (
        lambda: put(root, record(**ELSEWHERE), 2),
        lambda: root.fs.rm(root.path("_lock"), recursive=True),
        lambda: put(root, b"{}", 1),
    ):
        with pytest.raises(LockLost), locked(root):
            lose()
        root.fs.rm(root.path("_lock"), recursive=True) if root.exists("_lock") else None


def test_what_stopped_the_run_is_what_is_told(root: Store) -> None:
    def work(lose: bool) -> None:
        if lose:
            put(root, record(**ELSEWHERE), 2)
        raise KeyError("why")

    with pytest.raises(KeyError, match="why"), locked(root):
        work(lose=False)
    with pytest.raises(LockLost, match="lost the lock") as lost, locked(root):
        work(lose=True)
    assert isinstance(lost.value.__cause__, KeyError)


FLAKY = """
import json, resource, sys, time
from vlpipe.pipeline.engine.locking import lock, lock_file
from vlpipe.pipeline.errors import LockLost
from vlpipe.pipeline.storage.store import Store
from vlpipe.pipeline.engine.worker.map_shard import ShardTask, run_shard
lock.BEAT_S, lock.RETRY_S, lock.LEASE_S = 0.1, 0.05, 1.0
store = Store(sys.argv[1])

def full(yes):
    resource.setrlimit(resource.RLIMIT_FSIZE, (0 if yes else resource.RLIM_INFINITY, resource.RLIM_INFINITY))

def beat():
    return lock_file.newest(store).record.beat

try:
    with lock.locked(store):
        full(True)
        time.sleep(0.4)
        lock.check(store)
        full(False)
        wrote = time.time()
        while beat() < wrote:
            assert time.time() < wrote + 20
            time.sleep(0.02)
        print("goes on", flush=True)
        full(True)
        began = time.monotonic()
        while time.monotonic() < began + 20:
            lock.check(store)
            time.sleep(0.02)
except LockLost as error:
    full(False)
    print(0.2 < time.monotonic() - began < 10, error)
"""


@pytest.mark.slow
def test_a_sign_of_life_that_fails_is_tried_again_and_a_run_without_any_stops(root: Store) -> None:
    """The disk is full for a moment (a limit on file sizes), and then for longer than the lease."""
    done = subprocess.run(
        [sys.executable, "-c", FLAKY, root.url], capture_output=True, text=True, timeout=120
    )
    assert re.fullmatch(
        rf"goes on\nTrue lost the lock of {root.url}: no heartbeat could be written for 1 s "
        r"\(OSError: \[Errno 27\] File too large.*\)\. "
        r"Finished shards are kept; run again when no other run holds it\n",
        done.stdout,
    ), done.stdout + done.stderr


def receipts(root: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in root.glob("*-*/**/*") if p.is_file()}


def until(there: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    while not there():
        assert process.poll() is None, process.stdout and process.stdout.read()
        time.sleep(0.02)


@pytest.mark.slow
def test_a_run_that_was_away_overwrites_nothing(tmp_path: Path) -> None:
    """Stopped for long, taken over from another machine, and then let go on: its worker is amid a shard."""
    notes = tmp_path / "notes.txt"
    (tmp_path / "w.yaml").write_text(lock_rounds.TEXT.format(file=notes, seconds=0.3))
    args = ("run", str(tmp_path / "w.yaml"), "--local", "--root", str(tmp_path / "root"))
    store = Store(str(tmp_path / "root"))
    first = lock_rounds.vlpipe(*args)
    until(notes.exists, first)
    first.send_signal(signal.SIGSTOP)
    stopped = newest(store)
    store.write_bytes(stopped.rel, dataclasses.replace(stopped.record, ended=True, **ELSEWHERE).to_bytes())
    second = vlpipe(*args)
    assert "done in" in " ".join(second)
    before = receipts(tmp_path / "root")
    first.send_signal(signal.SIGCONT)
    said = " ".join(first.communicate(timeout=60)[0].split())
    assert first.returncode == 1
    assert "lost the lock" in said
    assert receipts(tmp_path / "root") == before
    assert vlpipe("verify", tmp_path / "root")[-1].endswith("all match their records")


class Keeps(LocalExecutor):
    """Keeps the tasks as they would travel to another machine."""

    def __init__(self) -> None:
        super().__init__(Services())
        self.tasks: list[bytes] = []

    def submit(self, one: Any, unit: Any, task: Any) -> None:
        self.tasks.append(pickle.dumps(task))
        super().submit(one, unit, task)


def test_a_worker_that_outlived_its_run_commits_nothing(tmp_path: Path) -> None:
    """It lives on another machine, and is amid a shard when the next run has made that shard already."""
    steps, store = planned(tmp_path, CHAIN)
    executor = Keeps()
    with locked(store):
        new_run(steps, store, executor, Watcher()).go()
        late = [task for task in map(pickle.loads, executor.tasks) if isinstance(task, ShardTask)]
        assert {task.store.fence for task in late} == {store.fence}
        run_shard(late[0])  # as long as its run has the root it may
    with locked(Store(store.url)):
        before = receipts(tmp_path / "root")
        for task in late:
            with pytest.raises(LockLost, match="another run has taken it over; nothing was written"):
                run_shard(task)
    assert len(late) > 10
    assert receipts(tmp_path / "root") == before


def test_a_run_that_lost_the_root_writes_no_progress_note(root: Store) -> None:
    def notes_after_losing_it() -> None:
        progress_notes.mark_running(root, "mine-0")
        root.fs.rm(root.path("_lock"), recursive=True)  # as the next run does
        progress_notes.mark_running(root, "theirs-0")

    with pytest.raises(LockLost, match="another run has taken it over"), locked(root):
        notes_after_losing_it()
    assert root.exists("mine-0/work/running.json")
    assert not root.exists("theirs-0")


# --- what is not ours ---

MINE = ["film.mkv.part", "my.part/film", "notes.0123abcd.part", "000001.parquet.part"]


@pytest.mark.slow
def test_nothing_of_the_users_goes(tmp_path: Path) -> None:
    runs = Runs(tmp_path, CHAIN)
    runs("run", "--local")
    folders = [runs.root, runs.root / "_cache", *(runs.step(name) for name in ("every", "sum"))]
    folders += [runs.step("every") / sub for sub in ("_receipts", "_rejects", "_log")]
    for folder in folders:
        for name in MINE:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("mine")
        (folder / "000000.parquet.0123abcd.part").write_text("ours, of a write that did not end")
    mine = {p for folder in folders for p in folder.rglob("*") if p.is_file() and p.read_bytes() == b"mine"}
    for name in ("every", "sum"):
        (runs.step(name) / "manifest.json").unlink()
    runs("run", "--local")
    runs("prune", "--yes")
    (tmp_path / "list.txt").write_text("id:id3\nid:id4\n")
    runs("forget", tmp_path / "list.txt", "--yes")
    runs("run", "--local")
    assert {p for p in mine if not p.exists()} == set()
    assert not [p for p in runs.root.rglob("*.0123abcd.part") if p.name.startswith("000000")]
    assert left(runs.root)


def test_a_root_that_chains_file_systems(tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text(CHAIN)
    for verb in ("run", "plan", "status"):
        local = ["--local"] if verb == "run" else []
        said = vlpipe(verb, tmp_path / "w.yaml", *local, "--root", f"{tmp_path}/a::b", code=1)
        assert "the name of a folder must not contain `::`" in said[-1]
    assert not (tmp_path / "a").exists()
