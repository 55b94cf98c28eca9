"""The program that `shut_in` starts: it decodes videos, which it reads through its parent, and opens no file itself.

Requests: {"open": ...}, {"frames": sizes} with the times and the number of each one's size, {"next": true}. While a request
is answered, the child may ask the parent for bytes of the video.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.images import sandbox
from vlpipe.stages.video.decode import Limits, Video, open_file
from vlpipe.stages.video.open_video import need_av
from vlpipe.stages.video.sizes import Exact, ShortSide, Size, Square

ANSWER, FAULT, READ = b"=", b"!", b"?"  # the first byte of a message to the parent
BUFFER_BYTES = 1 << 18  # read at once
SIZES: dict[str, type[Size]] = {one.__name__: one for one in (Square, ShortSide, Exact)}
Frames = Iterator[tuple[int, npt.NDArray[np.uint8]]]


class ParentFile:
    """The video as a file for PyAV; the parent reads it."""

    def __init__(self, name: str, num_bytes: int, requests: Iterator[bytes]) -> None:
        self.name, self._num_bytes, self._requests, self._at = name, num_bytes, requests, 0

    def read(self, num: int) -> bytes:
        num = max(0, min(num, self._num_bytes - self._at))
        if not num:
            return b""
        sandbox.answer(READ + self._at.to_bytes(8, "big") + num.to_bytes(8, "big"))
        data = next(self._requests, b"")
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._num_bytes}[whence]
        if start + offset < 0:
            raise OSError("a seek to before the start of the file")
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        return self._at


class Decoder:
    """The open video, and the frames that are being read from it."""

    def __init__(self, requests: Iterator[bytes]) -> None:
        self._requests = requests
        self._stack = ExitStack()
        self._video: Video | None = None
        self._frames: Frames = iter(())

    def answer(self, request: dict[str, Any], data: bytes) -> bytes:
        """Returns JSON for `open`; the next frame, or b"" after the last one, for `frames` and `next`. Raises RowFault."""
        if "open" in request:
            return self._open(request)
        if "frames" in request:
            kinds = [SIZES[how.pop("kind")](**how) for how in request["frames"]]
            half = len(data) // 2
            which = np.frombuffer(data[half:], np.int64)
            assert self._video is not None
            self._frames = self._video.frames(
                np.frombuffer(data[:half], np.float64), [kinds[k] for k in which.tolist()]
            )
        found = next(self._frames, None)
        if found is None:
            return b""
        index, picture = found
        head = b"".join(part.to_bytes(4, "big") for part in (index, *picture.shape[:2]))
        return head + picture.tobytes()

    def _open(self, request: dict[str, Any]) -> bytes:
        self._frames, self._video = iter(()), None
        self._stack.close()
        name, limits = request["open"], Limits(**request["limits"])
        file = ParentFile(name, request["num_bytes"], self._requests)
        self._video = video = self._stack.enter_context(open_file(file, name, limits, BUFFER_BYTES))
        found: dict[str, Any] = {"info": asdict(video.info), "texts": [], "fault": None}
        try:
            found["texts"] = video.subtitles() if request["text_tracks"] else []
        except RowFault as fault:
            if fault.why != "bad_subtitles":
                raise
            found["fault"] = [fault.why, fault.detail]
        return json.dumps(found).encode()


def load() -> None:
    """Imports the modules that decoding needs, because the process cannot open files later."""
    av = need_av()
    for module in pkgutil.walk_packages(av.__path__, "av."):
        if not module.name.endswith(("__main__", "datasets")):  # a program; downloads
            importlib.import_module(module.name)


def main() -> None:
    """Runs the child process until its input ends."""
    start = sandbox.begin()
    load()
    sandbox.ready(start["memory_mb"], num_files=3)
    requests = sandbox.requests()
    decoder = Decoder(requests)
    for request in requests:
        head, _, data = request.partition(b"\n")
        try:
            answer = ANSWER + decoder.answer(json.loads(head), data)
        except RowFault as fault:
            answer = FAULT + json.dumps([fault.why, fault.detail]).encode()
        except MemoryError:
            answer = (
                FAULT
                + json.dumps(["decode_memory", "decoding it takes more memory than is allowed"]).encode()
            )
        sandbox.answer(answer)


if __name__ == "__main__":
    main()
