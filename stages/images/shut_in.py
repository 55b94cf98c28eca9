"""Decodes untrusted bytes in a child process with limited memory, no new files or sockets, and a deadline per image.

If the child hangs, exceeds its memory or dies, only the current image is rejected and the worker continues, with or
without Ray. Images are sent many at a time in an in-memory file: sent one by one, the transfer would cost as much as
decoding a small image.
"""

from __future__ import annotations

import atexit
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from io import FileIO
from threading import Lock, Timer
from typing import Any, NamedTuple, cast

from vlpipe.pipeline.engine.worker.step_end import when_step_ends
from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.common.pixels import Probe
from vlpipe.stages.images import check as checked
from vlpipe.stages.images.check import Checked, Rules
from vlpipe.stages.images.sandbox import Late, ShutIn, environment

TOGETHER_BYTES = 1 << 22  # max bytes of images sent together, unless a single one is larger
MAX_VECTOR = 1024  # images that one system call writes
SPARE_S = 5.0  # that a child waits for the next shard, which usually follows at once
SPARE_IMAGES = 50_000  # that it may have decoded before; a library's leaks would fill its memory


class Decoder:
    """Checks images in a child process, which is started at the first image and restarted if it dies or hangs.

    timeout_s: per image. memory_mb: MiB that the child may use for decoding.
    """

    def __init__(self, rules: Rules, timeout_s: float, memory_mb: int) -> None:
        self._timeout_s = timeout_s
        self._file = _file_in_memory()  # the child may only read it
        start = {"memory_mb": memory_mb, "rules": asdict(rules), "file": self._file.fileno()}
        cannot = (
            "the child process that decodes images did not start, or died while it loaded its decoders; "
            f"decode_memory_mb is {memory_mb}: if the machine has enough memory, increase it"
        )
        self._child = ShutIn(checked.__name__, start, cannot, [self._file.fileno()])
        self.num_images = 0  # that were sent so far

    def check(self, data: bytes) -> Checked:
        """Returns one checked image. Raises RowFault as in `check_all`."""
        (found,) = self.check_all([data])
        if isinstance(found, RowFault):
            raise found
        return found

    def check_all(self, images: Sequence[bytes]) -> list[Checked | RowFault]:
        """Returns a checked image or a RowFault for each image, in order.

        RowFaults: those of `check.check`, decode_timeout, decode_memory, killed_decoder.
        """
        found: list[Checked | RowFault] = []
        for together in _cut(images):
            try:
                found += self._ask(together)
            except (EOFError, Late):  # it is unknown which image caused it
                self._child.close()
                found += [self._alone(image) for image in together]
        return found

    def _alone(self, image: bytes) -> Checked | RowFault:
        for _ in range(2):  # a child may die for other reasons; if it dies twice, the image is the cause
            try:
                return self._ask([image])[0]
            except Late:
                self._child.close()
                return RowFault("decode_timeout", f"decoding the image took more than {self._timeout_s:g} s")
            except EOFError:
                code = self._child.close()
        return RowFault(
            "killed_decoder", f"the process that decoded the image died twice, with exit status {code}"
        )

    def _ask(self, images: Sequence[bytes]) -> list[Checked | RowFault]:
        """Returns the results of images that are sent together.

        Raises EOFError if the child died, Late if it sent no answer for `timeout_s`.
        """
        self.num_images += len(images)
        num_bytes = _write(self._file, images)
        self._child.send(json.dumps([len(image) for image in images]).encode())
        found: list[Checked | RowFault] = []
        while len(found) < len(images):
            answer = io.BytesIO(self._child.receive(self._timeout_s))
            for num_new, *fields in json.loads(answer.readline()):
                found.append(_found(fields, answer.read(num_new) or images[len(found)]))
        if num_bytes > TOGETHER_BYTES:
            self._file.truncate(0)
        return found

    def close(self) -> int | None:
        """Ends the child; returns its exit status, or None if it was not running."""
        self._file.close()
        return self._child.close()


@contextmanager
def decoding(rules: Rules, timeout_s: float, memory_mb: int) -> Iterator[Decoder]:
    """Yields a `Decoder` whose process ends with the block."""
    one = Decoder(rules, timeout_s, memory_mb)
    try:
        yield one
    finally:
        one.close()


@contextmanager
def lent(rules: Rules, timeout_s: float, memory_mb: int) -> Iterator[Decoder]:
    """Yields a `Decoder` that was perhaps used before: its process waits SPARE_S for the next block with these settings.

    A worker opens a stage once per shard, and starting the child takes as long as decoding 2,000 small images.
    """
    settings = (os.getpid(), environment(), sys.executable, rules, timeout_s, memory_mb)
    one = _spare.take(settings) or Decoder(rules, timeout_s, memory_mb)
    try:
        yield one
    except BaseException:  # perhaps in the middle of a conversation
        one.close()
        raise
    _spare.keep(settings, one)


class _Waiting(NamedTuple):
    settings: tuple[object, ...]
    decoder: Decoder
    timer: Timer


class _Spare:
    """The decoder that was used last, until it is closed."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._waiting: _Waiting | None = None

    def keep(self, settings: tuple[object, ...], one: Decoder) -> None:
        self.close()
        if one.num_images > SPARE_IMAGES:
            one.close()
            return
        timer = Timer(SPARE_S, self.close)
        timer.daemon = True
        with self._lock:
            self._waiting = _Waiting(settings, one, timer)
        timer.start()

    def take(self, settings: tuple[object, ...]) -> Decoder | None:
        """Returns the decoder if it has these settings, and closes it if not."""
        with self._lock:
            found, self._waiting = self._waiting, None
        if (
            found is None or found.settings[0] != os.getpid()
        ):  # that of the process that this one was forked from
            return None
        found.timer.cancel()
        if found.settings == settings:
            return found.decoder
        found.decoder.close()
        return None

    def close(self) -> None:
        self.take(())


_spare = _Spare()
atexit.register(_spare.close)
when_step_ends(_spare.close)


def _file_in_memory() -> FileIO:
    if sys.platform == "linux":
        return FileIO(os.memfd_create("images"), "wb")
    return cast(FileIO, tempfile.TemporaryFile(buffering=0))


def _write(file: FileIO, images: Sequence[bytes]) -> int:
    """Writes images one behind the other, from the start of the file; returns their size in bytes."""
    num_bytes = sum(map(len, images))
    file.seek(0)
    if hasattr(os, "writev") and len(images) <= MAX_VECTOR:
        if os.writev(file.fileno(), images) == num_bytes:
            return num_bytes
        file.seek(0)
    rest = memoryview(b"".join(images))
    while rest:
        rest = rest[file.write(rest) :]
    return num_bytes


def _cut(images: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Yields groups of images to send together, of at most TOGETHER_BYTES or a single larger image."""
    start = num_bytes = 0
    for k, image in enumerate(images):
        if k > start and num_bytes + len(image) > TOGETHER_BYTES:
            yield images[start:k]
            start, num_bytes = k, 0
        num_bytes += len(image)
    if images:
        yield images[start:]


def _found(fields: list[Any], data: bytes) -> Checked | RowFault:
    if len(fields) == 2:
        return RowFault(*fields)
    kind, probed_width, probed_height, num_frames, format, width, height = fields
    probe = Probe(format=kind, width=probed_width, height=probed_height, num_frames=num_frames)
    return Checked(probe=probe, data=data, format=format, width=width, height=height)
