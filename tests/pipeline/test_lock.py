"""One run per root: who takes over from whom, and what is known of a run."""

import dataclasses
import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lock_rounds
import pytest
from lock_records import DEAD_PID, ELSEWHERE, locks, put, quick, record, root  # noqa: F401
from moto_s3 import S3, s3, s3_server  # noqa: F401

from vlpipe.pipeline.engine.locking import lock, lock_file
from vlpipe.pipeline.engine.locking.lock import locked
from vlpipe.pipeline.engine.locking.lock_file import Record, newest, parse, rel_of, state_of
from vlpipe.pipeline.engine.locking.processes import is_running, process_start, this_machine
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.inspect.status import lock_holder
from vlpipe.pipeline.storage.store import Store

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
def test_rounds_of_real_runs_on_s3(s3: S3, tmp_path: Path) -> None:
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
