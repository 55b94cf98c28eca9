"""The first look at a stranger's video, in a child process: with bounded memory, and a deadline that holds in FFmpeg too.

Deadlines of `decode` are checked between packets; a decoder that hangs or eats memory within one does not come back. A child
that hangs, grows or dies costs its one video; the next one gets a new child (about 0.5 s).
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
from typing import Any

from vlpipe.pipeline.errors import RowFault, StepFailed
from vlpipe.stages.video.decode import LIMITS, Exact, Limits, TextCue, VideoInfo, open_video, sample_times

START_TIMEOUT_S = 60.0
GRACE_S = 5.0  # over the deadline: the child then says itself which one passed


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """A video that opens, with the cues of its own text tracks."""

    info: VideoInfo
    cues: list[TextCue]


@contextmanager
def looker(root: str, limits: Limits = LIMITS, *, memory_mb: int = 2048) -> Iterator[Looker]:
    """A `Looker` whose child ends with the block."""
    one = Looker(root, limits, memory_mb)
    try:
        yield one
    finally:
        one.close()


class Looker:
    """Looks at one video after another below `root`, in a child started with the first one and again after a death."""

    def __init__(self, root: str, limits: Limits, memory_mb: int) -> None:
        self._root, self._limits, self._memory_mb = root, limits, memory_mb
        self._process: subprocess.Popen[bytes] | None = None

    def look(self, video: str, num_bytes: int | None = None, fps: float = 0.0) -> Look:
        """RowFault: those of `open_video`; deadline, decode_memory, killed_decoder.

        fps: decode as many frames per second of the video, and throw them away; 0: the first frame only.
        """
        for is_again in (False, True):  # a child may die for reasons of its own; twice is the video's doing
            try:
                said = self._ask({"video": video, "num_bytes": num_bytes, "fps": fps})
            except EOFError as error:
                code = self.close()
                if is_again:
                    detail = f"{video}: the process that decoded it died with {code}"
                    raise RowFault("killed_decoder", detail) from error
            else:
                if "why" in said:
                    raise RowFault(said["why"], said["detail"])
                return Look(info=VideoInfo(**said["info"]), cues=[TextCue(*cue) for cue in said["cues"]])
        raise AssertionError

    def close(self) -> int | None:
        """Its exit status, if it was there."""
        process, self._process = self._process, None
        if process is None:
            return None
        assert process.stdin
        assert process.stdout
        process.stdin.close()
        process.stdout.close()
        try:
            return process.wait(0.2)  # it ends by itself when its input does
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        process = self._alive()
        _send(process, request)
        try:
            return _receive(process, self._limits.deadline_s + GRACE_S)
        except TimeoutError as error:
            process.kill()
            self.close()
            detail = f"{request['video']}: not done after {self._limits.deadline_s:g} s of decoding"
            raise RowFault("deadline", detail) from error

    def _alive(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            command = [sys.executable, "-W", "ignore", "-m", __name__]
            pipe, null = subprocess.PIPE, subprocess.DEVNULL
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=null, bufsize=0)
            start = {"path": sys.path, "memory_mb": self._memory_mb, "root": self._root}
            try:
                _send(self._process, start | {"limits": asdict(self._limits)})
                _receive(self._process, START_TIMEOUT_S)
            except (EOFError, TimeoutError) as error:  # that is no video's fault
                self.close()
                why = f"the process that looks at videos does not start (memory_mb: {self._memory_mb})"
                raise StepFailed(why) from error
        return self._process


def _send(process: subprocess.Popen[bytes], message: dict[str, Any]) -> None:
    assert process.stdin
    try:
        process.stdin.write(json.dumps(message).encode() + b"\n")
    except BrokenPipeError as error:
        raise EOFError from error


def _receive(process: subprocess.Popen[bytes], timeout_s: float) -> dict[str, Any]:
    """One line. EOFError: the child is gone; TimeoutError."""
    assert process.stdout
    found, deadline = b"", time.monotonic() + timeout_s
    while not found.endswith(b"\n"):
        if not select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError
        piece = os.read(process.stdout.fileno(), 1 << 20)
        if not piece:
            raise EOFError
        found += piece
    return json.loads(found)


def main() -> None:
    """The child: video after video, until its input ends."""
    answers = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # no library may write between the answers
    start = json.loads(sys.stdin.readline())
    sys.path[:] = start["path"]
    limits = Limits(**start["limits"])
    _shut_in(start["memory_mb"])
    with os.fdopen(answers, "w", encoding="utf-8") as out:
        print("{}", file=out, flush=True)
        for line in sys.stdin:
            print(json.dumps(_answer(start["root"], limits, **json.loads(line))), file=out, flush=True)


def _answer(root: str, limits: Limits, video: str, num_bytes: int | None, fps: float) -> dict[str, Any]:
    try:
        with open_video(root, video, limits, num_bytes=num_bytes) as opened:
            cues = opened.subtitles()
            if fps:
                times = sample_times(0, opened.info.duration_s or 0, fps)
                for _ in opened.frames(times, Exact(16, 16)):
                    pass
            return {"info": asdict(opened.info), "cues": cues}
    except RowFault as fault:
        return {"why": fault.why, "detail": fault.detail}
    except MemoryError:
        return {"why": "decode_memory", "detail": f"{video}: decoding it takes more than `memory_mb`"}


def _shut_in(memory_mb: int) -> None:
    """Load what decoding needs, then give up the right to more memory and to writing files."""
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
