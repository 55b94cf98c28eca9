"""A child process for parsers of untrusted bytes: limited memory, no file writes, no secrets, and a deadline for answers.

The child gets only the environment variables in KEEP_ENV. The parent uses `ShutIn`. The child is a program that calls
`begin`, then `ready`, and answers its `requests`. Messages in both directions are prefixed with their length.
"""

from __future__ import annotations

import gc
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from vlpipe.pipeline.errors import StepFailed

START_TIMEOUT_S = 60.0
LENGTH = 8  # bytes, big-endian
READ_BYTES = 1 << 16
# Names, or starts of names that end in "_", of the variables that a child inherits. Keys of cloud stores and tokens are in
# others; VLPIPE_RUN marks the processes of a run.
KEEP_ENV = (
    *("PATH", "LANG", "LC_", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_", "SYSTEMROOT", "VLPIPE_RUN"),
    *("OMP_", "OPENBLAS_", "MKL_"),  # numbers of threads
)
KEEP_ENV_PYTHON = ("PYTHONPATH", "PYTHONHOME", "PYTHONHASHSEED", "PYTHONUTF8", "PYTHONDONTWRITEBYTECODE")
MAX_ANSWER_BYTES = 1 << 30
# Depending on the heap layout, glibc may return memory to the system and request it again for every image; decoding a
# 160 x 160 image then takes 0.23 ms instead of 0.17. With these settings the child keeps up to 64 MB.
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(1 << 26), "MALLOC_MMAP_THRESHOLD_": str(1 << 25)}


class Late(Exception):
    """Raised if the child did not answer, or read a request, in time."""


class ShutIn:
    """A sandboxed child process, started at the first request and restarted after it was closed."""

    def __init__(self, program: str, start: Mapping[str, Any], cannot: str, fds: Sequence[int] = ()) -> None:
        """program: module to run; start: values that `begin` returns in the child; cannot: text of the StepFailed if the
        child does not start; fds: file descriptors that the child inherits."""
        self._program, self._start, self._cannot, self._fds = program, start, cannot, fds
        self._process: subprocess.Popen[bytes] | None = None
        self._came = bytearray()  # bytes of answers received so far

    def send(self, request: bytes, timeout_s: float | None = None) -> None:
        """Sends a request. Raises EOFError if the child died, Late if it does not read it within `timeout_s` (None: waits
        without limit), StepFailed if it cannot be started."""
        self._write(self.start(), request, timeout_s)

    def receive(self, timeout_s: float) -> bytes:
        """Returns the next answer.

        Raises EOFError if the child died or announces more than MAX_ANSWER_BYTES, Late if there is no answer within
        `timeout_s`.
        """
        process, deadline, end = self.start(), time.monotonic() + timeout_s, LENGTH
        assert process.stdout
        while True:
            if len(self._came) >= LENGTH:
                end = LENGTH + int.from_bytes(self._came[:LENGTH], "big")
                if end > MAX_ANSWER_BYTES:
                    raise EOFError
            if len(self._came) >= end:
                break
            if not select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise Late
            piece = os.read(process.stdout.fileno(), READ_BYTES)
            if not piece:
                raise EOFError
            self._came += piece
        with memoryview(self._came) as came:
            answer = bytes(came[LENGTH:end])
        del self._came[:end]
        return answer

    def start(self) -> subprocess.Popen[bytes]:
        """Returns the child, ready for requests; starts it if needed. Raises StepFailed if it cannot be started."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", self._program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # codec messages; results come as answers
                bufsize=0,
                env={**environment(), **KEEP_MEMORY},
                pass_fds=self._fds,
            )
            assert self._process.stdin
            os.set_blocking(self._process.stdin.fileno(), False)
            try:
                message = json.dumps({"path": sys.path, **self._start}).encode()
                self._write(self._process, message, START_TIMEOUT_S)
                self.receive(START_TIMEOUT_S)
            except (EOFError, Late) as error:  # not caused by a request
                self.close()
                raise StepFailed(self._cannot) from error
        return self._process

    def _write(self, process: subprocess.Popen[bytes], message: bytes, timeout_s: float | None) -> None:
        assert process.stdin
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        fd, rest = process.stdin.fileno(), memoryview(len(message).to_bytes(LENGTH, "big") + message)
        while rest:
            left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([], [fd], [], left_s)[1]:
                raise Late
            try:
                rest = rest[os.write(fd, rest) :]
            except BlockingIOError:
                continue
            except BrokenPipeError as error:
                raise EOFError from error

    def close(self) -> int | None:
        """Ends the child; returns its exit status, or None if it was not running."""
        process, self._process = self._process, None
        self._came.clear()
        if process is None:
            return None
        for pipe in (process.stdin, process.stdout):
            if pipe:
                pipe.close()
        try:
            return process.wait(0.2)  # it exits when its input ends
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def environment() -> dict[str, str]:
    """Returns the variables of this process's environment that a child inherits."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in KEEP_ENV + KEEP_ENV_PYTHON
        or any(one[-1] == "_" and name.startswith(one) for one in KEEP_ENV)
    }


def begin() -> dict[str, Any]:
    """Returns the `start` values given by the parent. Called in the child, first."""
    gc.disable()  # until `ready`: what is loaded stays
    start: dict[str, Any] = json.loads(next(requests()))
    sys.path[:] = start["path"]
    return start


def ready(memory_mb: int, num_files: int | None = None) -> None:
    """Limits the child and tells the parent that it is ready. Called in the child, when everything is loaded.

    Allows `memory_mb` MiB in addition to the memory used so far (Linux only), no writing to files and, if `num_files` is
    given, no new file or socket while that many are open; those that are open stay so.
    """
    import resource

    if sys.platform == "linux":  # other systems do not enforce this limit
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limit = used + memory_mb * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if num_files is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (num_files, num_files))
    gc.freeze()
    gc.enable()
    answer(b"")


def requests() -> Iterator[bytes]:
    """Yields requests until the parent closes the pipe or exits. Called in the child."""
    source: IO[bytes] = sys.stdin.buffer
    while head := source.read(LENGTH):
        yield source.read(int.from_bytes(head, "big"))


def answer(message: bytes) -> None:
    """Sends an answer to the parent. Called in the child."""
    rest = memoryview(len(message).to_bytes(LENGTH, "big") + message)
    while rest:
        rest = rest[os.write(sys.stdout.fileno(), rest) :]
