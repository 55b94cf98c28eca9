"""Where a video can be entered: its key frames, from the container's index, without decoding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.video.budget import Budget, said
from vlpipe.stages.video.open_video import need_av, packets

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

MATROSKA = "matroska"
# They hold no times, or few: FFmpeg counts them from the start, and miscounts from elsewhere. They are read from the start.
COUNTED = ("avi", "mpeg")
FAR = 1 << 60  # ticks


class Keys:
    """Asks FFmpeg's index. Key frames that the index lacks cost time, not correctness."""

    def __init__(self, opened: InputContainer, stream: VideoStream, delay: int) -> None:
        """delay: ticks from a key frame's time in the index to its begin."""
        self._is_counted = opened.format.name in COUNTED
        self._entries, self._delay = stream.index_entries, delay

    def before(self, tick: int) -> int:
        """About when the last key frame begins that is on show at or before `tick`; -1: none is known."""
        at = -1 if self._is_counted else self._entries.search_timestamp(tick - self._delay)
        return self._entries[at].timestamp + self._delay if at >= 0 else -1


def complete_index(opened: InputContainer, stream: VideoStream, budget: Budget) -> None:
    """MP4 has all frames in its index. Matroska's is read by a seek to the end, or, where there is none, by reading all
    packets once (33 ms for 300 s). Other containers have what they have.
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
        raise RowFault("broken_video", f"{budget.video}: it cannot be sought: {said(error)}") from error
