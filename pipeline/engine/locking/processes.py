"""Identifies processes on this machine and those that belong to a run. Linux only; elsewhere nothing is known of them."""

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
    """Identifies one boot of one kernel and one pid namespace; host names may be shared by clones and containers.

    Empty if unknown.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def process_start(pid: int) -> str:
    """Start of a process in clock ticks since boot, to detect a reused pid. Empty if there is no such process."""
    return _stat(pid)[1]


def _stat(pid: int) -> tuple[str, str]:
    """(state, start in clock ticks) of a process; both empty if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return "", ""
    return fields[0], fields[19]


def is_running(pid: int, started: str) -> bool | None:
    """True if the process that started at `started` still runs. None if it is hidden (another user's, `hidepid`)."""
    state, start = _stat(pid)
    if start:
        return start == started and state not in "ZX"  # a zombie does nothing any more
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return None
    return bool(_stat(pid)[1] == started)  # it appeared since the first look


def processes_of(run: str) -> list[int]:
    """Pids on this host, except this process, with the run's id in their environment."""
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
    """Wait for a dead run's processes to end; those left after `grace_s` seconds are killed."""
    deadline = time.monotonic() + grace_s
    while found := processes_of(run):
        if time.monotonic() > deadline:
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            deadline = time.monotonic() + grace_s
        time.sleep(0.05)
