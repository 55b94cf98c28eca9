"""The first look at a stranger's video, in a child process: with little memory, and a deadline that holds in native code.

A child that hangs, grows or dies costs its one video. It opens nothing that writes; the videos may lie behind an fsspec URL.
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
from vlpipe.stages.video.decode import Limits, TextCue, VideoInfo, open_video

START_TIMEOUT_S = 60.0
GRACE_S = 5.0  # the decoder's own deadline comes first; it says more


@dataclass(frozen=True, slots=True)
class Look:
    info: VideoInfo
    texts: tuple[TextCue, ...]  # of the text tracks in the file, if they were asked for


def look(root: str, video: str, limits: Limits, *, text_tracks: bool, num_bytes: int | None) -> Look:
    """In this process. RowFault: those of `open_video`."""
    with open_video(root, video, limits, num_bytes=num_bytes) as opened:
        return Look(opened.info, tuple(opened.subtitles()) if text_tracks else ())


class Prober:
    """Looks at videos in a process of its own, started with the first one, and again after a death."""

    def __init__(self, limits: Limits, memory_mb: int) -> None:
        self._limits, self._memory_mb = limits, memory_mb
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""

    def look(self, root: str, video: str, *, text_tracks: bool = False, num_bytes: int | None = None) -> Look:
        """RowFault: those of `open_video`, and killed_decoder, decode_memory."""
        request = {"root": root, "video": video, "text_tracks": text_tracks, "num_bytes": num_bytes}
        for last in (
            False,
            True,
        ):  # a child may die for reasons of its own; the same video twice is the video's
            try:
                return self._ask(request)
            except EOFError as error:
                code = self.close()
                if last:
                    raise RowFault(
                        "killed_decoder", f"{video}: the process that opened it died with {code}"
                    ) from error
        raise AssertionError

    def _ask(self, request: dict[str, Any]) -> Look:
        process = self.start()
        try:
            _send(process.stdin, request)
        except BrokenPipeError as error:
            raise EOFError from error
        try:
            said = self._receive(process.stdout, self._limits.deadline_s + GRACE_S)
        except TimeoutError as error:
            self.close()
            detail = f"{request['video']}: no answer {GRACE_S:g} s after the deadline of {self._limits.deadline_s:g} s"
            raise RowFault("deadline", detail) from error
        if "why" in said:
            raise RowFault(said["why"], said["detail"])
        return Look(VideoInfo(**said["info"]), tuple(TextCue(*one) for one in said["texts"]))

    def start(self) -> subprocess.Popen[bytes]:
        """The child, which is ready for requests."""
        if self._process is None:
            command = [sys.executable, "-W", "ignore", "-m", __name__]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
            )
            self._rest = b""
            start = {"path": sys.path, "memory_mb": self._memory_mb, "limits": asdict(self._limits)}
            try:
                _send(self._process.stdin, start)
                self._receive(self._process.stdout, START_TIMEOUT_S)
            except (EOFError, BrokenPipeError, TimeoutError) as error:  # that is no video's fault
                self.close()
                raise StepFailed(
                    f"the process that opens videos does not start (memory_mb: {self._memory_mb})"
                ) from error
        return self._process

    def _receive(self, pipe: IO[bytes] | None, timeout_s: float) -> Any:
        """One line of JSON. EOFError, TimeoutError."""
        assert pipe
        deadline = time.monotonic() + timeout_s
        parts = [self._rest]
        while b"\n" not in parts[-1]:
            if not select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError
            piece = os.read(pipe.fileno(), 1 << 20)
            if not piece:
                raise EOFError
            parts.append(piece)
        line, _, self._rest = b"".join(parts).partition(b"\n")
        return json.loads(line)

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
def prober(limits: Limits, memory_mb: int) -> Iterator[Prober]:
    """A `Prober` that ends with the block."""
    one = Prober(limits, memory_mb)
    try:
        yield one
    finally:
        one.close()


def _send(pipe: IO[bytes] | None, message: Any) -> None:
    assert pipe
    rest = memoryview(json.dumps(message).encode() + b"\n")
    while rest:
        rest = rest[os.write(pipe.fileno(), rest) :]


def _answer(request: dict[str, Any], limits: Limits) -> dict[str, Any]:
    try:
        found = look(**request, limits=limits)
    except RowFault as fault:
        return {"why": fault.why, "detail": fault.detail}
    except MemoryError:
        return {
            "why": "decode_memory",
            "detail": f"{request['video']}: opening it takes more than `memory_mb`",
        }
    return {"info": asdict(found.info), "texts": found.texts}


def main() -> None:
    """The child: video after video, until its input ends."""
    source = sys.stdin.buffer
    start = json.loads(source.readline())
    sys.path[:] = start["path"]
    limits = Limits(**start["limits"])
    _shut_in(start["memory_mb"])
    with os.fdopen(sys.stdout.fileno(), "wb", buffering=0, closefd=False) as out:
        _send(out, "ready")
        while line := source.readline():
            _send(out, _answer(json.loads(line), limits))


def _shut_in(memory_mb: int) -> None:
    """Load what opening needs, then give up the right to more memory and to files with something in them."""
    import resource

    from vlpipe.stages.video.source import need_av

    need_av()
    if sys.platform == "linux":  # others do not keep to this limit
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limit = used + memory_mb * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
