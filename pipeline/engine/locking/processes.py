"""Identifies processes on this machine and those that belong to a run. Linux only; elsewhere the functions find none."""

from __future__ import annotations

import os
import platform
import signal
import time
from contextlib import suppress
from pathlib import Path

RUN_VARIABLE = "VLPIPE_RUN"  # in the environment of every process a run starts
GRACE_S = 10.0


def this_machine() -> str:
    """Returns an id of this machine (one boot of one kernel) and pid namespace; empty if unknown.

    A host name is not enough, because clones and containers may share it.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def process_start(pid: int) -> str:
    """Returns the start of a process in clock ticks since boot, to detect a reused pid; empty if there is none."""
    return _stat(pid)[1]


def _stat(pid: int) -> tuple[str, str]:
    """Returns (state, start in clock ticks) of a process; both empty if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return "", ""
    return fields[0], fields[19]


def is_running(pid: int, started: str) -> bool | None:
    """Returns True if the process that started at `started` still runs; None if it is hidden (another user's, `hidepid`)."""
    state, start = _stat(pid)
    if start:
        return start == started and state not in "ZX"  # Z, X: zombie, dead
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return None
    return bool(_stat(pid)[1] == started)  # it may have started after the first `_stat`


def processes_of(run: str) -> list[int]:
    """Returns the pids of processes on this host with the run's id in their environment, without this process."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environ = (entry / "environ").read_bytes()
            zombie = _stat(int(entry.name))[0] == "Z"
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        own = int(entry.name) == os.getpid()
        if f"{RUN_VARIABLE}={run}".encode() in environ.split(b"\0") and not own and not zombie:
            found.append(int(entry.name))
    return found


def wait_until_gone(run: str, grace_s: float = GRACE_S) -> None:
    """Waits for a dead run's processes to end; kills those left after `grace_s` seconds."""
    deadline = time.monotonic() + grace_s
    while found := processes_of(run):
        if time.monotonic() > deadline:
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            deadline = time.monotonic() + grace_s
        time.sleep(0.05)
