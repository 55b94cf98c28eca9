"""Probes untrusted videos (reads their properties) in a child process with limited memory and a deadline.

The deadline also stops native code. If the child hangs, exceeds its memory or dies, only the current video is rejected.
The child writes no files. Videos may be local or at an fsspec URL.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.images import sandbox
from vlpipe.stages.images.sandbox import Late, ShutIn
from vlpipe.stages.video.decode import Limits, TextCue, VideoInfo, open_video
from vlpipe.stages.video.open_video import need_av

GRACE_S = 5.0  # extra time, so that the decoder's own deadline, which has a clearer error text, applies first


@dataclass(frozen=True, slots=True)
class Look:
    """The result of probing a video: its properties and subtitles."""

    info: VideoInfo
    texts: tuple[TextCue, ...]  # cues of the text tracks in the file, if requested


def look(root: str, video: str, limits: Limits, *, text_tracks: bool, num_bytes: int | None) -> Look:
    """Probe a video in this process. Raises RowFault as `open_video`."""
    with open_video(root, video, limits, num_bytes=num_bytes) as opened:
        return Look(opened.info, tuple(opened.subtitles()) if text_tracks else ())


class Prober:
    """Probes videos in a child process, which is started at the first video and restarted if it dies."""

    def __init__(self, limits: Limits, memory_mb: int) -> None:
        self._limits = limits
        start = {"memory_mb": memory_mb, "limits": asdict(limits)}
        cannot = f"the process that opens videos failed to start (probe_memory_mb: {memory_mb})"
        self._child = ShutIn(__name__, start, cannot)

    def look(self, root: str, video: str, *, text_tracks: bool = False, num_bytes: int | None = None) -> Look:
        """Probe a video. Raises RowFault as `open_video`, or killed_decoder, decode_memory."""
        request = {"root": root, "video": video, "text_tracks": text_tracks, "num_bytes": num_bytes}
        for _ in range(2):  # a child may die for other reasons; if it dies twice, the video is the cause
            try:
                return self._ask(request)
            except EOFError:
                code = self.close()
        raise RowFault(
            "killed_decoder", f"{video}: the process that opened it died twice, with exit status {code}"
        )

    def _ask(self, request: dict[str, Any]) -> Look:
        self._child.send(json.dumps(request).encode())
        try:
            answer = json.loads(self._child.receive(self._limits.deadline_s + GRACE_S))
        except Late as error:
            self.close()
            detail = f"{request['video']}: no answer {GRACE_S:g} s after the deadline of {self._limits.deadline_s:g} s"
            raise RowFault("deadline", detail) from error
        if "why" in answer:
            raise RowFault(answer["why"], answer["detail"])
        return Look(VideoInfo(**answer["info"]), tuple(TextCue(*one) for one in answer["texts"]))

    def close(self) -> int | None:
        """End the child; returns its exit status, or None if it was not running."""
        return self._child.close()


@contextmanager
def prober(limits: Limits, memory_mb: int) -> Iterator[Prober]:
    """Yields a `Prober` whose process ends with the block."""
    one = Prober(limits, memory_mb)
    try:
        yield one
    finally:
        one.close()


def _answer(request: dict[str, Any], limits: Limits) -> dict[str, Any]:
    try:
        found = look(**request, limits=limits)
    except RowFault as fault:
        return {"why": fault.why, "detail": fault.detail}
    except MemoryError:
        return {
            "why": "decode_memory",
            "detail": f"{request['video']}: opening it takes more memory than `probe_memory_mb`",
        }
    return {"info": asdict(found.info), "texts": found.texts}


def main() -> None:
    """Runs the child process: probes one video per request until its input ends."""
    start = sandbox.begin()
    limits = Limits(**start["limits"])
    need_av()
    sandbox.ready(start["memory_mb"])
    for request in sandbox.requests():
        sandbox.answer(json.dumps(_answer(json.loads(request), limits)).encode())


if __name__ == "__main__":
    main()
