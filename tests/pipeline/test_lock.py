"""One run per root: who takes over from whom, what a run does that lost its lock, and what never goes."""

import dataclasses
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lock_rounds
import pytest
from cli_helpers import Runs, vlpipe
from helpers import CHAIN, left, planned
from moto_s3 import S3, s3, s3_server  # noqa: F401

from vlpipe.pipeline.engine.executor import Watcher
from vlpipe.pipeline.engine.local_executor import LocalExecutor
from vlpipe.pipeline.engine.locking import lock, lock_file
from vlpipe.pipeline.engine.locking.lock import check, locked
from vlpipe.pipeline.engine.locking.lock_file import Record, newest, parse, rel_of, state_of
from vlpipe.pipeline.engine.locking.processes import is_running, process_start, this_machine
from vlpipe.pipeline.engine.records import progress_notes
from vlpipe.pipeline.engine.runner import Run
from vlpipe.pipeline.engine.worker.map_shard import ShardTask, run_shard
from vlpipe.pipeline.errors import LockLost, VlpipeError
from vlpipe.pipeline.inspect.status import lock_holder
from vlpipe.pipeline.storage.store import Store

DEAD_PID = 2**22 + 1  # no Linux has so many
ELSEWHERE = {"host": "elsewhere", "machine": "elsewhere"}


def record(**changes: Any) -> Record:
    """A run's that was killed on this machine."""
    found = Record(
        run=uuid.uuid4().hex, host="here", machine=this_machine(), pid=DEAD_PID, started="1", beat=time.time()
    )
    return dataclasses.replace(found, **changes)


def locks(root: Store) -> list[str]:
    """The lock files, without one that a heartbeat is writing."""
    return [name for name in root.list("_lock") if not name.endswith(".part")]


def put(store: Store, one: Record | bytes, number: int = 1) -> None:
    store.write_bytes(rel_of(number), one if isinstance(one, bytes) else one.to_bytes())


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease of a second."""
    for module, name, value in (
        (lock, "LEASE_S", 1.0),
        (lock_file, "LEASE_S", 1.0),
        (lock, "BEAT_S", 0.1),
        (lock, "RETRY_S", 0.05),
        (lock, "LOOK_S", 0.05),
    ):
        monkeypatch.setattr(module, name, value)


@pytest.fixture
def root(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "root"))


# --- taking over ---


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "memory", "s3"])
def test_of_many_who_wait_for_a_dead_run_one_goes_on(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    for number in range(2 if kind == "s3" else 8):
        url = str(tmp_path / str(number)) if kind == "folder" else f"memory://{tmp_path.name}/{number}"
        if kind == "s3":
            url = request.getfixturevalue("s3").new_root()
        dead = record()
        put(Store(url), dead)
        lingering = subprocess.Popen(
            ["sleep", "0.2"], env={"PATH": os.environ["PATH"], "VLPIPE_RUN": dead.run}
        )
        went = contend(url, 6)
        assert lingering.wait() == 0  # it was waited for
        assert [what for what in went if what == "held"] == ["held"]
        assert all(what == "held" or "is in use by another run" in what for what in went), went
        (name,) = Store(url).list("_lock")
        assert parse(Store(url).read_bytes(f"_lock/{name}")).ended


def contend(url: str, num: int) -> list[str]:
    """What happened to so many threads that want the lock at once, and keep it until all have tried."""
    went: list[str] = []
    start, tried = threading.Barrier(num), threading.Event()

    def note(what: str) -> None:
        went.append(what)
        if len(went) == num:
            tried.set()

    def one() -> None:
        start.wait()
        try:
            with locked(Store(url)):
                note("held")
                tried.wait(20)
        except VlpipeError as error:
            note(str(error))

    threads = [threading.Thread(target=one) for _ in range(num)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return went


@pytest.mark.slow
def test_rounds_of_real_runs_on_a_folder() -> None:
    assert all(how.startswith("well") for how in lock_rounds.main(1, "folder"))


@pytest.mark.slow
def test_rounds_of_real_runs_on_s3(s3: S3, tmp_path: Path) -> None:  # noqa: F811
    how, said = lock_rounds.one_round(tmp_path, s3.new_root())
    assert how.startswith("well"), (how, said)


class Late(Store):
    """Its first listing of the locks is an old one."""

    old: list[str]

    def list(self, rel: str = "") -> list[str]:
        return self.old.pop() if rel == "_lock" and self.old else super().list(rel)


def test_who_looked_long_ago_takes_nothing(root: Store) -> None:
    """Between its look and its file others came and went: 1 was dead, 3 is alive, and 2 is free again."""
    put(root, record(), 1)
    put(root, record(**ELSEWHERE), 3)
    late = Late(root.url)
    object.__setattr__(late, "old", [["000001.json"]])
    with pytest.raises(VlpipeError, match="is in use by a run on another machine"):
        lock._acquire(late, print)
    assert locks(root) == ["000001.json", "000003.json"]


def test_the_numbers_go_on(root: Store) -> None:
    for number in (1, 2, 3):
        with locked(root) as run:
            assert locks(root) == [f"{number:06d}.json"]
            assert lock.holder_run(root) == run
    put(root, dataclasses.replace(newest(root).record, ended=True), 999_999)
    with locked(root):
        assert locks(root) == ["1000000.json"]
    put(root, record(ended=True), 999_999)  # by name it would be the last
    assert newest(root).rel == "_lock/1000000.json"


def test_the_lock_of_this_very_process(root: Store) -> None:
    with locked(root), pytest.raises(VlpipeError, match=rf"in use by another run \(process {os.getpid()} on"):
        lock._acquire(root, print)
    left_behind = record(pid=os.getpid(), started=process_start(os.getpid()))  # its end could not be written
    put(root, left_behind, 2)
    with locked(root):
        assert lock_holder(root).is_running


def test_a_killed_run_that_nobody_waited_for_is_dead() -> None:
    child = subprocess.Popen(["true"])
    started = process_start(child.pid)
    while Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    assert is_running(child.pid, started) is False
    child.wait()
    assert is_running(child.pid, started) is False
    assert is_running(os.getpid(), process_start(os.getpid())) is True
    assert is_running(os.getpid(), "1") is False


def test_another_machine_of_the_same_name_is_another_machine() -> None:
    """Containers and clones share host names; there the process is not looked for."""
    clone = record(machine=this_machine() + "x")
    content = clone.to_bytes()
    assert state_of(lock_file.Lock(rel=rel_of(1), content=content, record=clone)) == "fresh"


# --- other machines, other clocks ---


@contextmanager
def living(store: Store, one: Record, every_s: float = 0.2) -> Iterator[None]:
    """A run elsewhere that gives signs of life, by its own clock."""
    done = threading.Event()
    put(store, one)

    def beat() -> None:
        ahead = one.beat - time.time()
        while not done.wait(every_s):
            put(store, dataclasses.replace(one, beat=time.time() + ahead))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("ahead_s", [86_400, -86_400, 10**11])
def test_a_clock_that_differs_decides_nothing(quick: None, root: Store, ahead_s: float) -> None:
    other = record(**ELSEWHERE, beat=time.time() + ahead_s)
    said: list[str] = []
    with (
        living(root, other),
        pytest.raises(VlpipeError, match="elsewhere, which has just written a heartbeat"),
    ):
        lock._acquire(root, said.append)
    assert "was in use by process" in said[0]
    assert "waiting 1 s for a heartbeat" in said[0]
    put(root, other)
    began = time.monotonic()
    with locked(root, said.append):
        assert 1 <= time.monotonic() - began < 20


def test_a_run_elsewhere_within_its_lease_is_refused_at_once(root: Store) -> None:
    put(root, record(**ELSEWHERE, beat=time.time() - 20))
    with pytest.raises(VlpipeError) as refused, locked(root):
        pass
    assert re.search(
        r"in use by a run on another machine \(process \d+ on elsewhere, last heartbeat 2\d s ago\); "
        r"if it is dead, try again in [34]\d s",
        str(refused.value),
    )


def test_who_is_watched_may_end_or_be_taken_over(quick: None, root: Store) -> None:
    put(root, record(**ELSEWHERE, beat=0.0))
    timer = threading.Timer(0.3, put, (root, record(**ELSEWHERE, beat=0.0, ended=True)))
    timer.start()
    with locked(root, print):
        pass
    put(root, record(**ELSEWHERE, beat=0.0), 5)
    timer = threading.Timer(0.3, put, (root, record(**ELSEWHERE), 6))
    timer.start()
    with pytest.raises(VlpipeError, match="in use by a run on another machine"), locked(root, print):
        pass


DAMAGED = [
    b"",
    b"{}",
    b"[]",
    b"null",
    b"3",
    b'{"run": "a',
    b"\xff\xfe",
    b"[" * 200_000,
    b'{"run": 3, "pid": "x"}',
]
DAMAGED += [record(pid=1).to_bytes().replace(b'"pid": 1', b'"pid": %d' % pid) for pid in (-1, 0, 10**30)]
DAMAGED += [
    record(beat=0.5).to_bytes().replace(b"0.5", text) for text in (b"1" + b"0" * 400, b"NaN", b'"x"', b"tru")
]
DAMAGED += [record().to_bytes().replace(b'"ended": false', b'"ended": "no"')]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_lock(quick: None, root: Store, content: bytes) -> None:
    put(root, content)
    assert lock_holder(root).text.endswith("000001.json cannot be read: it is unknown who holds this root")
    said: list[str] = []
    with locked(root, said.append):
        assert locks(root) == ["000002.json"]
    assert said == [
        f"{root.path('_lock/000001.json')} is not a valid lock file; waiting 0.15 s, in which a run that "
        f"holds the root stops"
    ]


def test_keys_of_another_vlpipe_do_no_harm(root: Store) -> None:
    mine = record(pid=os.getppid(), started=process_start(os.getppid()))
    put(root, json.dumps({**json.loads(mine.to_bytes()), "colour": [1]}).encode())
    with (
        pytest.raises(VlpipeError, match=rf"in use by another run \(process {os.getppid()} on here\); wait"),
        locked(root),
    ):
        pass
    assert lock_holder(root).is_running


def test_status_says_what_is_known(root: Store) -> None:
    for one, start, running in (
        (record(), "a run was killed: ", False),
        (record(**ELSEWHERE), "a run is in progress: ", True),
        (record(**ELSEWHERE, beat=0.0), "a run may be in progress: ", False),
        (record(**ELSEWHERE, beat=time.time() + 86_400), "a run may be in progress: ", False),
        (record(ended=True), "", False),
    ):
        put(root, one)
        assert lock_holder(root).text.startswith(start), one
        assert lock_holder(root).is_running == running


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
        super().__init__()
        self.tasks: list[bytes] = []

    def submit(self, one: Any, unit: Any, task: Any) -> None:
        self.tasks.append(pickle.dumps(task))
        super().submit(one, unit, task)


def test_a_worker_that_outlived_its_run_commits_nothing(tmp_path: Path) -> None:
    """It lives on another machine, and is amid a shard when the next run has made that shard already."""
    steps, store = planned(tmp_path, CHAIN)
    executor = Keeps()
    with locked(store):
        Run(steps, store, executor, Watcher()).go()
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
