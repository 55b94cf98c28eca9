"""Decode bytes from strangers in a child process: with little memory, no new files or sockets, and a deadline per image.

Header checks bound pixels, frames and scans, but not what a decoder does with hostile data. A child that hangs, grows or
dies costs its one image, with or without Ray; the worker goes on. The way there and back costs about 0.1 ms per image.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from vlpipe.pipeline.errors import RowFault, StepFailed
from vlpipe.stages.ingest.resize import Resize, is_small, resized
from vlpipe.stages.pixels import Probe, verify

START_TIMEOUT_S = 60.0
LENGTH = 8  # bytes, big-endian, before each message
PIPE_BYTES = 1 << 20  # most images then go over in one write


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What an image may be, and what is to be done with it."""

    max_pixels: int
    max_frames: int
    resize: Resize | None = None


@dataclass(frozen=True, kw_only=True)
class Checked:
    """An image that decodes. `probe`: as it came; `data`, width, height: as it is kept."""

    probe: Probe
    data: bytes
    format: str
    width: int
    height: int


def check(data: bytes, rules: Rules) -> Checked:
    """In this process. RowFault: those of `stages.pixels`."""
    probe = verify(data, max_pixels=rules.max_pixels, max_frames=rules.max_frames)
    if rules.resize is None or is_small(rules.resize, probe.width, probe.height):
        return Checked(probe=probe, data=data, format=probe.format, width=probe.width, height=probe.height)
    new, width, height = resized(data, rules.resize, probe.width, probe.height, rules.max_pixels)
    return Checked(probe=probe, data=new, format=FORMAT_OF[rules.resize.format], width=width, height=height)


FORMAT_OF = {"jpg": "JPEG", "webp": "WEBP", "png": "PNG"}


class Child:
    """Checks images in a process of its own, started with the first one, and again after a death."""

    def __init__(self, rules: Rules, timeout_s: float, memory_mb: int) -> None:
        self._rules, self._timeout_s, self._memory_mb = rules, timeout_s, memory_mb
        self._process: subprocess.Popen[bytes] | None = None

    def check(self, data: bytes) -> Checked:
        """RowFault: those of `check`, and decode_timeout, decode_memory, killed_decoder."""
        for last in (
            False,
            True,
        ):  # a child may die for reasons of its own; the same image twice is the image's
            try:
                return self._ask(data)
            except EOFError as error:
                code = self.close()
                if last:
                    raise RowFault(
                        "killed_decoder", f"the process that decoded it died with {code}"
                    ) from error
        raise AssertionError

    def _ask(self, data: bytes) -> Checked:
        process = self._alive()
        try:
            _send(process.stdin, data)
        except BrokenPipeError as error:
            raise EOFError from error
        said = json.loads(self._receive(process.stdout, self._timeout_s))
        if "why" in said:
            raise RowFault(said["why"], said["detail"])
        probe = Probe(**said["probe"])
        kept = self._receive(process.stdout, self._timeout_s) if said["new"] else data
        return Checked(
            probe=probe, data=kept, format=said["format"], width=said["width"], height=said["height"]
        )

    def _receive(self, pipe: IO[bytes] | None, timeout_s: float) -> bytes:
        assert pipe
        deadline = time.monotonic() + timeout_s
        size = int.from_bytes(self._read(pipe.fileno(), LENGTH, deadline), "big")
        return self._read(pipe.fileno(), size, deadline)

    def _read(self, fd: int, size: int, deadline: float) -> bytes:
        found = b""
        while len(found) < size:
            if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                self.close()
                raise RowFault("decode_timeout", f"not decoded after {self._timeout_s:g} s")
            piece = os.read(fd, size - len(found))
            if not piece:
                raise EOFError
            found += piece
        return found

    def _alive(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # codecs talk there; what counts comes back as an answer
                bufsize=0,
            )
            start = {"path": sys.path, "memory_mb": self._memory_mb, "rules": asdict(self._rules)}
            try:
                _send(self._process.stdin, json.dumps(start).encode())
                self._receive(self._process.stdout, START_TIMEOUT_S)
            except (EOFError, BrokenPipeError, RowFault) as error:  # that is no image's fault
                raise StepFailed(
                    f"the process that checks images does not start (decode_memory_mb: {self._memory_mb})"
                ) from error
        return self._process

    def close(self) -> int | None:
        """Its exit status, if it was there."""
        process, self._process = self._process, None
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
def child(rules: Rules, timeout_s: float, memory_mb: int) -> Iterator[Child]:
    """A `Child` that ends with the block."""
    one = Child(rules, timeout_s, memory_mb)
    try:
        yield one
    finally:
        one.close()


def _send(pipe: IO[bytes] | None, data: bytes) -> None:
    assert pipe
    head = len(data).to_bytes(LENGTH, "big")
    rest = memoryview(head + data)
    while rest:
        rest = rest[os.write(pipe.fileno(), rest) :]


def _answer(data: bytes, rules: Rules) -> tuple[dict[str, Any], bytes | None]:
    try:
        found = check(data, rules)
    except RowFault as fault:
        return {"why": fault.why, "detail": fault.detail}, None
    except MemoryError:
        return {"why": "decode_memory", "detail": "decoding it takes more than `decode_memory_mb`"}, None
    new = found.data is not data
    said = {"probe": asdict(found.probe), "new": new}
    said |= {"format": found.format, "width": found.width, "height": found.height}
    return said, found.data if new else None


def main() -> None:
    """The child: image after image, until its input ends."""
    source, answers = sys.stdin.buffer, sys.stdout.fileno()
    start = json.loads(source.read(int.from_bytes(source.read(LENGTH), "big")))
    sys.path[:] = start["path"]
    rules = start["rules"]
    rules = Rules(**{**rules, "resize": Resize(**rules["resize"]) if rules["resize"] else None})
    _shut_in(start["memory_mb"])
    with os.fdopen(answers, "wb", buffering=0, closefd=False) as out:
        _send(out, b"ready")
        while head := source.read(LENGTH):
            said, new = _answer(source.read(int.from_bytes(head, "big")), rules)
            _send(out, json.dumps(said).encode())
            if new is not None:
                _send(out, new)


def _shut_in(memory_mb: int) -> None:
    """Load what decoding needs, then give up the right to more memory, files and sockets."""
    import resource

    from PIL import Image, ImageCms

    Image.init()  # all plugins, as they are imported when first used
    ImageCms.createProfile("sRGB")
    if sys.platform == "linux":  # others do not keep to this limit
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limit = used + memory_mb * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))


if __name__ == "__main__":
    main()
