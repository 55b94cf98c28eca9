"""Ensures that one run at a time uses a root, by a lock with a lease. After a killed run, the next one waits until the old
workers have ended.

A run rewrites its lock file every `BEAT_S` seconds: a heartbeat. A run on another machine counts as dead only if no
heartbeat comes while the next run watches its lock file for a whole lease. The next run then creates the next lock file
(see `lock_file`). The old run has stopped itself by then, and its workers, which read the lock again before each write,
write nothing more.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from vlpipe.pipeline.engine.locking.lock_file import (
    FOLDER,
    LEASE_S,
    Lock,
    Record,
    lock_files,
    newest,
    number_of,
    parse,
    rel_of,
    state_of,
)
from vlpipe.pipeline.engine.locking.processes import (
    RUN_VARIABLE,
    process_start,
    processes_of,
    this_machine,
    wait_until_gone,
)
from vlpipe.pipeline.errors import LockLost, VlpipeError
from vlpipe.pipeline.storage.exclusive import create
from vlpipe.pipeline.storage.file_names import is_part
from vlpipe.pipeline.storage.store import Fence, Store

__all__ = [
    "FOLDER",
    "LEASE_S",
    "RUN_VARIABLE",
    "check",
    "holder_run",
    "locked",
    "processes_of",
    "runs_held_here",
]

BEAT_S = 10.0  # seconds between heartbeats
RETRY_S = 2.0  # seconds until a failed heartbeat is retried
LOOK_S = 0.5  # polling interval, in seconds, while watching another run's lock
_held: dict[str, _Held] = {}  # run id -> lock held by this process


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _clock() -> float:
    """Returns monotonic seconds, including time the machine slept: other machines saw no heartbeat then."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@contextmanager
def locked(store: Store, say: Callable[[str], None] = _to_stderr) -> Iterator[str]:
    """Holds the root's lock; yields the run's id. Meanwhile `store` and its copies in workers check the lock before writes.

    Raises VlpipeError if another run holds it, and LockLost at the end if it was lost meanwhile.
    say: called with a line of text if it takes a while to find out whether another run is alive.
    """
    held = _acquire(Store(store.url), say)
    store.set_fence(Fence(held.rel, held.mine.run))
    before = os.environ.get(RUN_VARIABLE)
    os.environ[RUN_VARIABLE] = held.mine.run
    held.thread.start()
    try:
        for folder in ("", "_cache"):
            store.sweep(folder)
        yield held.mine.run
        held.check_now()
    except BaseException as error:
        lost = held.why_lost() if isinstance(error, Exception) else None
        _release(store, held, before, lost or error)
        if lost and not isinstance(error, LockLost):
            raise lost from error  # files vanished because another run took over
        raise
    _release(store, held, before, None)


def _release(store: Store, held: _Held, before: str | None, error: BaseException | None) -> None:
    """Records that the run has ended. before: value of RUN_VARIABLE to restore; None: it was not set.

    error: what stopped the run; if given, a failure to write the lock becomes a note of it instead of an error.
    """
    held.done.set()
    held.thread.join()
    store.set_fence(None)
    if before is None:
        os.environ.pop(RUN_VARIABLE, None)
    else:
        os.environ[RUN_VARIABLE] = before
    try:
        if held.is_mine():
            held.write(ended=True)
    except Exception as late:
        if error is None:
            raise
        error.add_note(f"and its lock could not be released: {late}")
    finally:
        del _held[held.mine.run]


def check(store: Store) -> None:
    """Raises LockLost if the run that holds `store`'s lock must stop. Cheap enough for every iteration of a loop."""
    if store.fence is not None and store.fence.run in _held:
        _held[store.fence.run].check()


def holder_run(store: Store) -> str:
    """Returns the id of the run that holds the root or held it last; empty if there was none."""
    lock = newest(store)
    return lock.record.run if lock and lock.record else ""


def runs_held_here() -> frozenset[str]:
    """Returns the ids of the runs whose locks this process holds."""
    return frozenset(_held)


@dataclass
class _Held:
    """A lock held by this process, and its heartbeat thread. beaten: when the last successful heartbeat began."""

    store: Store  # without a fence
    rel: str
    mine: Record
    beaten: float = field(default_factory=_clock)
    lost: str = ""
    trouble: str = ""  # why the last heartbeat failed
    done: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._beat, daemon=True, name="lock")

    def check(self) -> None:
        """Raises LockLost if the lock is known to be lost or no heartbeat succeeded for `LEASE_S` seconds."""
        if not self.lost and _clock() - self.beaten > LEASE_S:
            why = f" ({self.trouble})" if self.trouble else "; the machine slept, or the process was stopped"
            self.lost = f"no heartbeat could be written for {LEASE_S:.0f} s{why}"
        if self.lost:
            raise LockLost(
                f"lost the lock of {self.store.url}: {self.lost}. Finished shards are kept; "
                "run again when no other run holds it"
            )

    def check_now(self) -> None:
        """Like `check`, but also reads the lock file."""
        self.check()
        if not self.is_mine():
            self._lose()
            self.check()

    def why_lost(self) -> LockLost | None:
        """Returns the error if the lock is lost, else None. None also if the store fails: its error was raised already."""
        with suppress(OSError):
            try:
                self.check_now()
            except LockLost as lost:
                return lost
        return None

    def is_mine(self) -> bool:
        """Returns True if this run's lock file is still the current one; reads the store."""
        try:
            record = parse(self.store.read_bytes(self.rel))
        except FileNotFoundError:
            return False
        return (
            record is not None and record.run == self.mine.run and lock_files(self.store)[-1:] == [self.rel]
        )

    def write(self, *, ended: bool = False) -> None:
        record = dataclasses.replace(self.mine, beat=time.time(), ended=ended)
        self.store.write_bytes(self.rel, record.to_bytes(), sync_folder=False)

    def _lose(self) -> None:
        lock = newest(self.store)
        other = lock.record if lock and lock.record and lock.record.run != self.mine.run else None
        self.lost = (
            f"{other.who} has taken it over" if other else "its file is missing or belongs to another run"
        )

    def _beat(self) -> None:
        """Writes heartbeats until the run is done or its lock is lost. A failed one is retried after `RETRY_S` seconds."""
        wait = BEAT_S
        while not self.done.wait(wait):
            began = _clock()
            try:
                if not self._beat_once():
                    return
                self.beaten, self.trouble, wait = began, "", BEAT_S
            except Exception as error:  # any error of the store; `check` reports it if it lasts
                self.trouble, wait = f"{type(error).__name__}: {error}", RETRY_S

    def _beat_once(self) -> bool:
        """Writes one heartbeat; returns False if another run has the lock.

        Checks again after writing: if the lock was taken over meanwhile, the file just written is removed.
        """
        if self.is_mine():
            self.write()
            if self.is_mine():
                return True
            self.store.remove(self.rel)
        self._lose()
        return False


def _acquire(store: Store, say: Callable[[str], None]) -> _Held:
    """Acquires the lock: waits until no run holds the newest lock file, then creates the next one."""
    pid = os.getpid()
    while True:
        lock = newest(store)
        if lock is not None:
            _wait_until_free(store, lock, say)
        mine = Record(
            run=uuid.uuid4().hex,
            host=platform.node(),
            machine=this_machine(),
            pid=pid,
            started=process_start(pid),
            beat=time.time(),
        )
        held = _Held(store, rel_of(lock.number + 1 if lock else 1), mine)
        _held[mine.run] = held  # before the file exists, or other threads would consider its run dead
        try:
            if create(store, held.rel, mine.to_bytes()):
                if held.is_mine():
                    _clear_older(store, held)
                    return held
                store.remove(held.rel)  # it is not the newest: another run created a newer one meanwhile
        except BaseException:
            del _held[mine.run]
            raise
        del _held[mine.run]  # another run was first


def _clear_older(store: Store, held: _Held) -> None:
    """Removes older lock files. From here on, the fence check of every worker of an earlier run fails."""
    for rel in lock_files(store)[:-1]:
        store.remove(rel)
    for name in store.sizes(FOLDER) if store.is_local else ():
        if is_part(name) and int(name.partition(".")[0]) < number_of(held.rel):
            store.remove(f"{FOLDER}/{name}")


def _wait_until_free(store: Store, lock: Lock, say: Callable[[str], None]) -> None:
    """Returns once no run holds this lock. Raises VlpipeError if a run holds it."""
    state, record = state_of(lock, runs_held_here()), lock.record
    if state == "ended":
        return
    if record is None:
        say(
            f"{store.path(lock.rel)} is not a valid lock file; waiting {_watch_s(lock):.2g} s, in which a run that "
            "holds the root stops"
        )
    elif state == "here":
        raise VlpipeError(f"{store.url} is in use by another run ({record.who}); wait until it ends")
    elif state == "gone":
        wait_until_gone(record.run)
        return
    elif state == "fresh":
        age = max(0.0, time.time() - record.beat)
        raise VlpipeError(
            f"{store.url} is in use by a run on another machine ({record.who}, last heartbeat {age:.0f} s ago); "
            f"if it is dead, try again in {LEASE_S - age:.0f} s"
        )
    else:
        say(f"{store.url} was in use by {record.who}; waiting {LEASE_S:.0f} s for a heartbeat")
    _watch(store, lock)


def _watch_s(lock: Lock) -> float:
    """Returns the seconds to watch a lock: a lease; 1.5 heartbeats if its file is damaged, as its run stops at the next."""
    return LEASE_S if lock.record else 1.5 * BEAT_S


def _watch(store: Store, lock: Lock) -> None:
    """Returns if no heartbeat comes within `_watch_s` seconds. Raises VlpipeError if one does."""
    until = _clock() + _watch_s(lock)
    while (left := until - _clock()) > 0:
        time.sleep(min(LOOK_S, left))
        now = newest(store)
        if now is None or now.rel != lock.rel:
            return  # there is a newer lock file, or none; the caller checks again
        if now.content != lock.content and now.record is not None and not now.record.ended:
            raise VlpipeError(
                f"{store.url} is in use by another run ({now.record.who}, which has just written a heartbeat); "
                "wait until it ends"
            )
        if now.record is not None and now.record.ended:
            return
