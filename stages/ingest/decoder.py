"""Decode bytes from strangers in a child process: with little memory, no new files or sockets, and a deadline per image.

A child that hangs, grows or dies costs its one image, with or without Ray; the worker goes on. Images go over as many at
a time as the pipe holds: one by one, the way there and back cost as much as the decoding of a small one.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import IO, Any

from vlpipe.pipeline.errors import RowFault, StepFailed
from vlpipe.stages.ingest import checked
from vlpipe.stages.ingest.checked import ANSWER, LENGTH, Checked, Rules, write
from vlpipe.stages.pixels import Probe

START_TIMEOUT_S = 60.0
PIPE_BYTES = 1 << 18  # Linux gives a user 64 MB for larger pipes, of all processes together
READ_BYTES = 1 << 16


class _Late(Exception):
    """No answer in time."""


class Decoder:
    """Checks images in a process of its own, started with the first one, and again after a death."""

    def __init__(self, rules: Rules, timeout_s: float, memory_mb: int) -> None:
        self._rules, self._timeout_s, self._memory_mb = rules, timeout_s, memory_mb
        self._process: subprocess.Popen[bytes] | None = None
        self._came = bytearray()  # answers, as far as they have been read
        self._pipe_bytes = 0

    def check(self, data: bytes) -> Checked:
        """One image; raises its RowFault."""
        (found,) = self.check_all([data])
        if isinstance(found, RowFault):
            raise found
        return found

    def check_all(self, images: Sequence[bytes]) -> list[Checked | RowFault]:
        """In order. RowFault: those of `checked.check`, and decode_timeout, decode_memory, killed_decoder."""
        found: list[Checked | RowFault] = []
        blamed = -1  # a child may die for reasons of its own; twice at the same image is the image's
        while len(found) < len(images):
            try:
                for answer in self._answers(images[len(found) :]):
                    found.append(answer)
            except EOFError:
                code = self.close()
                if blamed == len(found):
                    found.append(RowFault("killed_decoder", f"the process that decoded it died with {code}"))
                else:
                    blamed = len(found)
        return found

    def _answers(self, images: Sequence[bytes]) -> Iterator[Checked | RowFault]:
        """One after the other; ends early after one that took too long. EOFError: the child died of the next one.

        No more is under way than the pipe holds, so that a write never waits for a child that waits for a reader.
        """
        process, sent, under_way = self._alive(), 0, 0
        for k, image in enumerate(images):
            while sent < len(images) and (
                sent == k or under_way + LENGTH + len(images[sent]) <= self._pipe_bytes
            ):
                _send(process.stdin, images[sent])
                under_way += LENGTH + len(images[sent])
                sent += 1
            try:
                said, new = self._receive(process.stdout, self._timeout_s)
            except _Late:
                self.close()
                yield RowFault("decode_timeout", f"not decoded after {self._timeout_s:g} s")
                return
            under_way -= LENGTH + len(image)
            yield _found(said, new or image)

    def _receive(self, pipe: IO[bytes] | None, timeout_s: float) -> tuple[dict[str, Any], bytes]:
        """An answer, and the new bytes of a resized image."""
        assert pipe
        deadline, size = time.monotonic() + timeout_s, ANSWER.size
        while True:
            if len(self._came) >= ANSWER.size:
                num_said, num_new = ANSWER.unpack_from(self._came)
                size = ANSWER.size + num_said + num_new
            if len(self._came) >= size:
                break
            if not select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise _Late
            piece = os.read(pipe.fileno(), READ_BYTES)
            if not piece:
                raise EOFError
            self._came += piece
        said, new = (
            self._came[ANSWER.size : ANSWER.size + num_said],
            self._came[ANSWER.size + num_said : size],
        )
        del self._came[:size]
        return json.loads(said), bytes(new)

    def _alive(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", checked.__name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # codecs talk there; what counts comes back as an answer
                bufsize=0,
            )
            self._pipe_bytes = _widened(self._process.stdin)
            start = {"path": sys.path, "memory_mb": self._memory_mb, "rules": asdict(self._rules)}
            try:
                _send(self._process.stdin, json.dumps(start).encode())
                self._receive(self._process.stdout, START_TIMEOUT_S)
            except (EOFError, _Late) as error:  # that is no image's fault
                raise StepFailed(
                    f"the process that checks images does not start (decode_memory_mb: {self._memory_mb})"
                ) from error
        return self._process

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


@contextmanager
def decoding(rules: Rules, timeout_s: float, memory_mb: int) -> Iterator[Decoder]:
    """A `Decoder` whose process ends with the block."""
    one = Decoder(rules, timeout_s, memory_mb)
    try:
        yield one
    finally:
        one.close()


def _found(said: dict[str, Any], data: bytes) -> Checked | RowFault:
    if "why" in said:
        return RowFault(said["why"], said["detail"])
    return Checked(probe=Probe(**said.pop("probe")), data=data, **said)


def _send(pipe: IO[bytes] | None, data: bytes) -> None:
    """EOFError when nobody reads."""
    assert pipe
    try:
        write(pipe.fileno(), len(data).to_bytes(LENGTH, "big") + data)
    except BrokenPipeError as error:
        raise EOFError from error


def _widened(pipe: IO[bytes] | None) -> int:
    """Bytes the pipe holds, made more where the system allows it; 0: unknown."""
    assert pipe
    if sys.platform != "linux":
        return 0
    import fcntl

    try:
        return fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except PermissionError:  # the user has many pipes already
        return fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ)
