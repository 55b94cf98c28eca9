"""Finds the key frames of a video, where decoding can start, from the container's index, without decoding.

Times are in ticks, units of the stream's time base.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.video.budget import Budget, said
from vlpipe.stages.video.open_video import need_av, packets

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

MATROSKA = "matroska"
# Containers with few or no time stamps: FFmpeg counts time from the start of reading, so times are wrong after a seek.
# Such files are always read from the start.
COUNTED = ("avi", "mpeg")
FAR = 1 << 60  # ticks; later than the end of any video


class Keys:
    """Key frames from FFmpeg's index. Key frames missing in the index cost time, but do not change results."""

    def __init__(self, opened: InputContainer, stream: VideoStream, delay: int) -> None:
        """delay: ticks from the time of a key frame in the index to its start."""
        self._is_counted = opened.format.name in COUNTED
        self._entries, self._delay = stream.index_entries, delay

    def before(self, tick: int) -> int:
        """Returns the approximate start of the last key frame at or before `tick`.

        -1: none is known, or the file must be read from the start (COUNTED).
        """
        at = -1 if self._is_counted else self._entries.search_timestamp(tick - self._delay)
        return self._entries[at].timestamp + self._delay if at >= 0 else -1


def complete_index(opened: InputContainer, stream: VideoStream, budget: Budget) -> None:
    """Completes the index of a Matroska file: by a seek to the end, or, if it has no index, by reading all packets once
    (33 ms for a video of 300 s). MP4 has all frames in its index; other containers are left as they are.

    Raises RowFault (broken_video) if the file cannot be sought.
    """
    if not opened.format.name.startswith(MATROSKA):
        return
    try:
        opened.seek(FAR, stream=stream)
        opened.seek(0, stream=stream)
        if len(stream.index_entries) < 2:
            for _ in packets(opened, stream, budget):
                pass
            opened.seek(0, stream=stream)
    except need_av().FFmpegError as error:
        raise RowFault("broken_video", f"{budget.video}: seeking failed: {said(error)}") from error
