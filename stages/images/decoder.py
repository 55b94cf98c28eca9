"""Decode bytes from strangers in a child process: with little memory, no new files or sockets, and a deadline per image.

A child that hangs, grows or dies costs its one image, with or without Ray; the worker goes on. Images go over many at a
time, in a file in memory: one by one, the way there and back cost as much as the decoding of a small one.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import IO, Any

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.common.pixels import Probe
from vlpipe.stages.images import check as checked
from vlpipe.stages.images.check import Checked, Rules
from vlpipe.stages.images.sandbox import Late, ShutIn

TOGETHER_BYTES = 1 << 22  # of the images that go over at a time, unless one has more


class Decoder:
    """Checks images in a process of its own, started with the first one, and again after a death."""

    def __init__(self, rules: Rules, timeout_s: float, memory_mb: int) -> None:
        self._timeout_s = timeout_s
        self._file = _file_in_memory()  # the child may only read it
        start = {"memory_mb": memory_mb, "rules": asdict(rules), "file": self._file.fileno()}
        cannot = f"the process that checks images does not start (decode_memory_mb: {memory_mb})"
        self._child = ShutIn(checked.__name__, start, cannot, [self._file.fileno()])

    def check(self, data: bytes) -> Checked:
        """One image; raises its RowFault."""
        (found,) = self.check_all([data])
        if isinstance(found, RowFault):
            raise found
        return found

    def check_all(self, images: Sequence[bytes]) -> list[Checked | RowFault]:
        """In order. RowFault: those of `checked.check`, and decode_timeout, decode_memory, killed_decoder."""
        found: list[Checked | RowFault] = []
        for together in _cut(images):
            try:
                found += self._ask(together)
            except (EOFError, Late):  # of which image is not known
                self._child.close()
                found += [self._alone(image) for image in together]
        return found

    def _alone(self, image: bytes) -> Checked | RowFault:
        for _ in range(2):  # a child may die for reasons of its own; twice at the same image is the image's
            try:
                return self._ask([image])[0]
            except Late:
                self._child.close()
                return RowFault("decode_timeout", f"not decoded after {self._timeout_s:g} s")
            except EOFError:
                code = self._child.close()
        return RowFault("killed_decoder", f"the process that decoded it died with {code}")

    def _ask(self, images: Sequence[bytes]) -> list[Checked | RowFault]:
        """EOFError: the child died. Late: for `timeout_s` no image came back."""
        self._file.seek(0)
        self._file.writelines(images)
        self._file.flush()
        self._child.send(json.dumps([len(image) for image in images]).encode())
        found: list[Checked | RowFault] = []
        while len(found) < len(images):
            answer = io.BytesIO(self._child.receive(self._timeout_s))
            for num_new, *said in json.loads(answer.readline()):
                found.append(_found(said, answer.read(num_new) or images[len(found)]))
        if self._file.tell() > TOGETHER_BYTES:
            self._file.truncate(0)
        return found

    def close(self) -> int | None:
        """The child's exit status, if there was one."""
        self._file.close()
        return self._child.close()


@contextmanager
def decoding(rules: Rules, timeout_s: float, memory_mb: int) -> Iterator[Decoder]:
    """A `Decoder` whose process ends with the block."""
    one = Decoder(rules, timeout_s, memory_mb)
    try:
        yield one
    finally:
        one.close()


def _file_in_memory() -> IO[bytes]:
    if sys.platform == "linux":
        return os.fdopen(os.memfd_create("images"), "wb")
    return tempfile.TemporaryFile()


def _cut(images: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """As many as go over at a time."""
    start = num_bytes = 0
    for k, image in enumerate(images):
        if k > start and num_bytes + len(image) > TOGETHER_BYTES:
            yield images[start:k]
            start, num_bytes = k, 0
        num_bytes += len(image)
    if images:
        yield images[start:]


def _found(said: list[Any], data: bytes) -> Checked | RowFault:
    if len(said) == 2:
        return RowFault(*said)
    kind, came_width, came_height, num_frames, format, width, height = said
    came = Probe(format=kind, width=came_width, height=came_height, num_frames=num_frames)
    return Checked(probe=came, data=data, format=format, width=width, height=height)
