"""A process of its own for a parser of strangers' bytes: it has little memory, writes no file, and answers in time or ends.

The parent has a `ShutIn`. The child is a program that calls `begin`, then `ready`, and sends answers to its `requests`.
Messages both ways are bytes after their length.
"""

from __future__ import annotations

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
# By chance of where it lies glibc gives memory back and takes it again with every image; decoding one of 160 x 160 then
# takes 0.23 ms, not 0.17. The child keeps what it had, up to 64 MB.
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(1 << 26), "MALLOC_MMAP_THRESHOLD_": str(1 << 25)}


class Late(Exception):
    """No answer in time."""


class ShutIn:
    """A child that is started with the first request, and again after a death."""

    def __init__(self, program: str, start: Mapping[str, Any], cannot: str, fds: Sequence[int] = ()) -> None:
        """program: a module; start: what its `begin` is given; cannot: what to say when it does not start."""
        self._program, self._start, self._cannot, self._fds = program, start, cannot, fds
        self._process: subprocess.Popen[bytes] | None = None
        self._came = bytearray()  # answers, as far as they have been read

    def send(self, request: bytes) -> None:
        """EOFError: it died."""
        self._write(self.start(), request)

    def receive(self, timeout_s: float) -> bytes:
        """The next answer. EOFError: it died; Late: nothing yet, and something may come."""
        process, deadline, end = self.start(), time.monotonic() + timeout_s, LENGTH
        assert process.stdout
        while True:
            if len(self._came) >= LENGTH:
                end = LENGTH + int.from_bytes(self._came[:LENGTH], "big")
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
        """The child, which is ready for requests."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", self._program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # codecs talk there; what counts comes back as an answer
                bufsize=0,
                env={**os.environ, **KEEP_MEMORY},
                pass_fds=self._fds,
            )
            try:
                self._write(self._process, json.dumps({"path": sys.path, **self._start}).encode())
                self.receive(START_TIMEOUT_S)
            except (EOFError, Late) as error:  # that is no request's fault
                self.close()
                raise StepFailed(self._cannot) from error
        return self._process

    def _write(self, process: subprocess.Popen[bytes], message: bytes) -> None:
        assert process.stdin
        try:
            _send(process.stdin.fileno(), message)
        except BrokenPipeError as error:
            raise EOFError from error

    def close(self) -> int | None:
        """Its exit status, if it was there."""
        process, self._process = self._process, None
        self._came.clear()
        if process is None:
            return None
        for pipe in (process.stdin, process.stdout):
            if pipe:
                pipe.close()
        try:
            return process.wait(0.2)  # it ends by itself when its input does
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def begin() -> dict[str, Any]:
    """In the child: what it was started with."""
    start: dict[str, Any] = json.loads(next(requests()))
    sys.path[:] = start["path"]
    return start


def ready(memory_mb: int, num_files: int | None = None) -> None:
    """In the child, when all it needs is loaded: give up the right to more memory, to files with something in them, and
    (num_files) to more open files and sockets.
    """
    import resource

    if sys.platform == "linux":  # others do not keep to this limit
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limit = used + memory_mb * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if num_files is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (num_files, num_files))
    answer(b"")


def requests() -> Iterator[bytes]:
    """In the child: one after the other, until the parent closes its end or is gone."""
    source: IO[bytes] = sys.stdin.buffer
    while head := source.read(LENGTH):
        yield source.read(int.from_bytes(head, "big"))


def answer(message: bytes) -> None:
    """In the child."""
    _send(sys.stdout.fileno(), message)


def _send(fd: int, message: bytes) -> None:
    rest = memoryview(len(message).to_bytes(LENGTH, "big") + message)
    while rest:
        rest = rest[os.write(fd, rest) :]
