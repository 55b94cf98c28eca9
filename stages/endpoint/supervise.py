"""Runs a server and ends it when the process that wants it ends, however that ends. The standard library alone.

python supervise.py STOP_S COMMAND ...: run by `endpoint.managed`, which holds the other ends of the standard streams. It
leaves the process that started it, so that nothing which ends that process's children ends it first; it is told of the end
by its standard input, which the kernel closes with the process. Every process that the server started ends with it: first
SIGTERM, and SIGKILL after STOP_S seconds, or ORPHAN_S if nobody waits for them any more. If this process is killed, the
kernel kills the server. Linux and macOS; the last two promises are Linux's.

Lines of JSON on standard output: {"started": pid}, or {"failed": text} if there is no such program; then, when the server
has ended, {"ended": exit code, "asked": whether it was told to end, "said": last part of what it wrote}.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress

TAIL_BYTES = 8_192  # of what the server wrote
LOOK_S = 0.1
ORPHAN_S = 2.0
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


def prctl(option: int, value: int) -> None:
    """Sets a property of this process, on Linux; elsewhere it does nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


class Supervised:
    """A server and all processes that it starts. said: the last TAIL_BYTES that it wrote; code: None while it runs."""

    def __init__(self, command: list[str]) -> None:
        mine = os.getpid()

        def end_with_me() -> None:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != mine:
                os._exit(1)

        self._out, theirs = os.pipe()
        os.set_blocking(self._out, False)
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=theirs,
                stderr=theirs,
                start_new_session=True,
                preexec_fn=end_with_me,  # this process has one thread
            )
        finally:
            os.close(theirs)
        self.pid = process.pid
        self.code: int | None = None
        self.said = b""

    def look(self, also: int | None = None) -> bool:
        """Waits for news for at most LOOK_S: reads what the server wrote, notes if it has ended. Returns True if the file
        descriptor `also` can be read."""
        wanted = [one for one in (self._out, also) if one is not None and one >= 0]
        ready = select.select(wanted, [], [], LOOK_S)[0]
        if self._out in ready:
            self._read()
        self._reap()
        return also in ready

    def _read(self) -> None:
        with suppress(BlockingIOError):
            for _ in range(64):
                data = os.read(self._out, 1 << 16)
                if not data:
                    os.close(self._out)
                    self._out = -1
                    return
                self.said = (self.said + data)[-TAIL_BYTES:]

    def _reap(self) -> None:
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                if pid == self.pid:
                    self.code = os.waitstatus_to_exitcode(status)

    def end(self, grace_s: float) -> None:
        """Ends the server and what it started; returns when nothing of it runs any more."""
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while time.monotonic() < deadline and (self.code is None or self._others()):
            self.look()
        while True:
            self._signal(signal.SIGKILL)
            for pid in self._others():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if self.code is not None and not self._others():
                break
            self.look()
        if self._out >= 0:
            self._read()

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def _others(self) -> list[int]:
        """Returns the children of this process: what the server left is given to it by the kernel."""
        self._reap()
        try:
            with open(f"/proc/self/task/{os.getpid()}/children") as file:
                return [int(one) for one in file.read().split()]
        except OSError:
            return []


def tell(**line: object) -> None:
    """Writes a line of JSON; nothing if nobody reads it any more."""
    with suppress(BrokenPipeError):
        os.write(1, json.dumps(line).encode() + b"\n")


def main(stop_s: float, command: list[str]) -> None:
    if os.fork():
        os._exit(0)
    ends: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: ends.append(number))
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        server = Supervised(command)
    except OSError as error:
        tell(failed=f"{error.strerror or error}: {command[0]}")
        return
    tell(started=server.pid)
    is_asked = is_orphan = False
    while server.code is None and not ends and not is_asked:
        if server.look(0):
            is_asked = True
            is_orphan = not os.read(0, 1)  # closed without a word
    server.end(ORPHAN_S if is_orphan else stop_s if is_asked or ends else 0.0)
    tell(ended=server.code, asked=is_asked, said=server.said.decode("utf-8", "replace"))


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2:])
