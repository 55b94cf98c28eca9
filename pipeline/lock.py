"""One run per root: a leased lock says who holds it, and a run after a kill waits until the old workers are gone."""

from __future__ import annotations

import json
import os
import platform
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.store import Store, canonical_json

REL = "_lock.json"
RUN_VARIABLE = "VLPIPE_RUN"  # in the environment of every process a run starts
BEAT_S = 10.0
LEASE_S = 60.0
GRACE_S = 10.0


def process_start(pid: int) -> str:
    """When a process started, in clock ticks since boot: a reused pid has another value. Empty when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def processes_of(run: str) -> list[int]:
    """Processes on this host that carry the run's id in their environment, this one aside. Linux only; elsewhere empty."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environ = (entry / "environ").read_bytes()
            zombie = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if (
            f"{RUN_VARIABLE}={run}".encode() in environ.split(b"\0")
            and int(entry.name) != os.getpid()
            and not zombie
        ):
            found.append(int(entry.name))
    return found


def wait_until_gone(run: str, grace_s: float = GRACE_S) -> None:
    """Wait for a dead run's processes to end; kill what is left after the grace."""
    deadline = time.monotonic() + grace_s
    while processes_of(run):
        if time.monotonic() > deadline:
            for pid in processes_of(run):
                os.kill(pid, signal.SIGKILL)
            deadline = time.monotonic() + grace_s
        time.sleep(0.05)


@contextmanager
def locked(store: Store) -> Iterator[str]:
    """Hold the root's lock; yields the run's id. Raises VlpipeError when another run holds it."""
    if _take_over(store):
        store.remove(REL)
    for folder in ("", "_cache"):
        store.sweep(folder)
    run = uuid.uuid4().hex
    mine = {"run": run, "host": platform.node(), "pid": os.getpid(), "started": process_start(os.getpid())}
    if not store.create(REL, canonical_json({**mine, "beat": time.time()})):
        raise VlpipeError(f"{store.url} was taken by another run just now")
    done = threading.Event()
    beat = threading.Thread(target=_beat, args=(store, mine, done), daemon=True)
    beat.start()
    before = os.environ.get(RUN_VARIABLE)
    os.environ[RUN_VARIABLE] = run
    try:
        yield run
    finally:
        done.set()
        beat.join()
        if before is None:
            del os.environ[RUN_VARIABLE]
        else:
            os.environ[RUN_VARIABLE] = before
        store.remove(REL)


def _write(store: Store, mine: dict[str, Any]) -> None:
    store.write_json(REL, {**mine, "beat": time.time()})


def _beat(store: Store, mine: dict[str, Any], done: threading.Event) -> None:
    while not done.wait(BEAT_S):
        _write(store, mine)


def _take_over(store: Store) -> bool:
    """True when a dead run's lock is there to be removed. Raises when the run is alive."""
    if not store.exists(REL):
        return False
    try:
        held = store.read_json(REL)
    except (json.JSONDecodeError, FileNotFoundError):
        return True  # it went away, or a kill cut it on a store without atomic writes
    if held["host"] == platform.node():
        if process_start(held["pid"]) == held["started"] != "":
            raise VlpipeError(
                f"{store.url} is in use by another run: process {held['pid']} on {held['host']}"
            )
        wait_until_gone(held["run"])
        return True
    age = time.time() - held["beat"]
    if age < LEASE_S:
        raise VlpipeError(
            f"{store.url} is in use by a run on {held['host']} (process {held['pid']}, last sign of life {age:.0f} s ago); "
            f"if it is dead, its lease ends in {LEASE_S - age:.0f} s"
        )
    return True
