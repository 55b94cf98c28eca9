"""Decodes untrusted videos in a child process without files or sockets, with limited memory and a deadline.

The child reads the video through its parent, so it opens nothing; a child that hangs, exceeds its memory or dies rejects
one video. `open_video` has the interface of `decode.open_video`. Children are reused by later videos of this process.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.images.sandbox import Late, ShutIn
from vlpipe.stages.video import video_child
from vlpipe.stages.video.decode import LIMITS, Limits, TextCue, VideoInfo, asked
from vlpipe.stages.video.open_video import video_file
from vlpipe.stages.video.sizes import Size

GRACE_S = 5.0  # extra time, so that the decoder's own deadline, which has a clearer error text, applies first
MEMORY_MB = 4096  # a frame of the largest size takes 141 MB, and decoders keep up to 16
MAX_READ = 1 << 22  # bytes that a child may ask for at once


@dataclass(frozen=True, slots=True)
class Look:
    """The properties of a video, and the cues of its text tracks if requested, else ().

    fault: why the cues cannot be read (bad_subtitles), although the video can.
    """

    info: VideoInfo
    texts: tuple[TextCue, ...] = ()
    fault: RowFault | None = None

    def text_cues(self) -> tuple[TextCue, ...]:
        """Returns `texts`. Raises `fault` if there is one."""
        if self.fault:
            raise self.fault
        return self.texts


class VideoChild:
    """A child process that decodes one video at a time."""

    def __init__(self, memory_mb: int, cannot: str) -> None:
        """memory_mb: limit of the process. cannot: text of the StepFailed that is raised if it does not start."""
        self._child = ShutIn(video_child.__name__, {"memory_mb": memory_mb}, cannot)
        self._file: Any = None
        self._video = ""
        self._limits = LIMITS

    def open(self, file: Any, video: str, limits: Limits, *, text_tracks: bool = False) -> Look:
        """Opens a video in the child; text_tracks: whether to read the cues in the file.

        Raises RowFault as `decode.open_file`, or killed_decoder, decode_memory.
        """
        for _ in range(2):  # a child may die for other reasons; if it dies twice, the video is the cause
            self._file, self._video, self._limits = file, video, limits
            size = file.seek(0, os.SEEK_END)
            request = {"open": video, "limits": asdict(limits), "num_bytes": size, "text_tracks": text_tracks}
            try:
                found = json.loads(self._ask(request))
            except EOFError:
                code = self.close()
                continue
            fault = RowFault(*found["fault"]) if found["fault"] else None
            return Look(VideoInfo(**found["info"]), tuple(TextCue(*one) for one in found["texts"]), fault)
        raise RowFault(
            "killed_decoder", f"{video}: the process that opened it died twice, with exit status {code}"
        )

    def frames(
        self, times_s: Sequence[float] | npt.NDArray[np.float64], size: Size | Sequence[Size]
    ) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
        """Yields the frames of the open video as `decode.Video.frames`. Raises RowFault as it, or killed_decoder,
        decode_memory."""
        times, sizes = asked(times_s, size)
        kinds = {one: k for k, one in enumerate(dict.fromkeys(sizes))}
        how = [{"kind": type(one).__name__, **asdict(one)} for one in kinds]
        which = np.array([kinds[one] for one in sizes], np.int64)
        answer = self._next({"frames": how}, times.tobytes() + which.tobytes())
        while answer:
            index, height, width = (int.from_bytes(answer[k : k + 4], "big") for k in (0, 4, 8))
            picture = np.frombuffer(answer, np.uint8, offset=12)
            if picture.size != height * width * 3 or index >= len(times):
                raise RowFault(
                    "killed_decoder",
                    f"{self._video}: the process that decoded it sent a frame of the wrong size or number",
                )
            yield index, picture.reshape(height, width, 3)
            answer = self._next({"next": True})

    def _next(self, request: dict[str, Any], data: bytes = b"") -> bytearray:
        try:
            return bytearray(self._ask(request, data))  # writable, as a decoded frame
        except EOFError:
            detail = f"{self._video}: the process that decoded it died with exit status {self.close()}"
            raise RowFault("killed_decoder", detail) from None

    def _ask(self, request: dict[str, Any], data: bytes = b"") -> bytes:
        """Returns the child's answer; meanwhile, reads the file for it. Raises RowFault, or EOFError if it died."""
        deadline = time.monotonic() + self._limits.deadline_s + GRACE_S
        message = json.dumps(request).encode() + b"\n" + data
        try:
            while True:
                self._child.send(message, max(0.0, deadline - time.monotonic()))
                answer = self._child.receive(max(0.0, deadline - time.monotonic()))
                if answer[:1] != video_child.READ:
                    break
                self._file.seek(int.from_bytes(answer[1:9], "big"))
                message = self._file.read(min(int.from_bytes(answer[9:17], "big"), MAX_READ))
        except Late as error:
            self.close()
            detail = f"{self._video}: decoding took more than {self._limits.deadline_s:g} s, and did not stop"
            raise RowFault("deadline", detail) from error
        except EOFError:
            raise
        except BaseException:  # such as a lost connection to the store: the child still waits for bytes
            self.close()
            raise
        if answer[:1] == video_child.FAULT:
            raise RowFault(*json.loads(answer[1:]))
        return answer[1:]

    def close(self) -> int | None:
        """Ends the child; returns its exit status, or None if it was not running."""
        return self._child.close()


class ShutInVideo:
    """An open video in a child process; has the parts of `decode.Video` that stages use."""

    def __init__(self, child: VideoChild, info: VideoInfo) -> None:
        self._child, self.info = child, info

    def frames(
        self, times_s: Sequence[float] | npt.NDArray[np.float64], size: Size | Sequence[Size]
    ) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
        """Yields (index into times_s, RGB frame (H, W, 3) uint8), as `decode.Video.frames`. Raises RowFault as it, and
        killed_decoder, decode_memory."""
        return self._child.frames(times_s, size)


_idle: list[tuple[int, VideoChild]] = []  # (process that started it, child)
_lock = threading.Lock()


@contextmanager
def open_video(
    root: str, video: str, limits: Limits = LIMITS, *, num_bytes: int | None = None
) -> Iterator[ShutInVideo]:
    """Yields the open video at path `video` below `root`, decoded in a child process. Raises RowFault as
    `decode.open_video`, and killed_decoder, decode_memory."""
    with video_file(root, video, num_bytes, opened=True) as file:
        child = _taken()
        try:
            yield ShutInVideo(child, child.open(file, video, limits).info)
        finally:
            with _lock:
                _idle.append((os.getpid(), child))


def _taken() -> VideoChild:
    with _lock:
        for place, (process, child) in enumerate(_idle):
            if process == os.getpid():  # not one of the process that this one was forked from
                del _idle[place]
                return child
    cannot = (
        "the child process that decodes videos did not start, or died while it loaded FFmpeg; it needs up to "
        f"{MEMORY_MB} MB of memory: check that the machine has it"
    )
    return VideoChild(MEMORY_MB, cannot)
