"""Examines the files of untrusted videos in child processes (`video.shut_in`, `subtitles.shut_in`), kept for many videos."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.subtitles.cue import Source
from vlpipe.stages.subtitles.shut_in import SubtitleReader
from vlpipe.stages.subtitles.track import Merge, Track
from vlpipe.stages.video.decode import Limits
from vlpipe.stages.video.open_video import video_file
from vlpipe.stages.video.shut_in import Look, VideoChild


class Prober:
    """Probes videos and reads subtitle files, each in a child process that is started at the first one."""

    def __init__(self, limits: Limits, memory_mb: int) -> None:
        self._limits = limits
        cannot = (
            "the child process that opens videos did not start, or died while it loaded FFmpeg; probe_memory_mb is "
            f"{memory_mb}: if the machine has enough memory, increase it"
        )
        self._videos = VideoChild(memory_mb, cannot)
        self._subtitles = SubtitleReader(limits.deadline_s, memory_mb)

    def look(self, root: str, video: str, *, text_tracks: bool = False, num_bytes: int | None = None) -> Look:
        """Probes a video. Raises RowFault as `open_video`, or killed_decoder, decode_memory."""
        with video_file(root, video, num_bytes, opened=True) as file:
            return self._videos.open(file, video, self._limits, text_tracks=text_tracks)

    def subtitles(
        self,
        data: bytes,
        name: str,
        *,
        source: Source,
        lang: str | None,
        encoding: str,
        fps: float | None,
        rollup: Merge,
    ) -> Track:
        """Reads a subtitle file, as `read_subtitles`. Raises RowFault: bad_subtitles, no_cues."""
        return self._subtitles.read(
            data, name, source=source, lang=lang, encoding=encoding, fps=fps, rollup=rollup
        )

    def close(self) -> None:
        """Ends the processes."""
        self._videos.close()
        self._subtitles.close()


@contextmanager
def prober(limits: Limits, memory_mb: int) -> Iterator[Prober]:
    """Yields a `Prober` whose processes end with the block."""
    one = Prober(limits, memory_mb)
    try:
        yield one
    finally:
        one.close()


def too_long(video: str, duration_s: float | None, max_duration_s: float) -> None:
    """Raises RowFault (too_long) if a video lasts longer than `max_duration_s`; an unknown duration is accepted."""
    if duration_s is not None and duration_s > max_duration_s:
        raise RowFault("too_long", f"{video} lasts {duration_s:g} s, max_duration_s is {max_duration_s:g}")
