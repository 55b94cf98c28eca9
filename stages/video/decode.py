"""Decodes frames of a video at given times: by time stamp, not frame number; upright, square pixels, at a given size.

    with open_video(root, "a/b.mp4") as video:
        for index, pixels in video.frames(sample_times(0, 10, fps=2), Square(224)):
            ...

The frame at a time is the last one that starts at or before it, as in a player. Decoding uses one thread: process several
videos in parallel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.video.budget import Budget, Limits, said
from vlpipe.stages.video.key_frames import FAR, Keys, complete_index
from vlpipe.stages.video.open_video import container, need_av, packets, video_file
from vlpipe.stages.video.sizes import Exact, ShortSide, Size, Square, fit, shown_size
from vlpipe.stages.video.walk import Walk

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.subtitles.stream import SubtitleStream
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

__all__ = [
    "Exact",
    "Limits",
    "ShortSide",
    "Size",
    "Square",
    "TextCue",
    "Video",
    "VideoInfo",
    "open_video",
    "probe",
    "sample_times",
]

SLACK_S = 0.0005  # added to requested times: Matroska rounds to milliseconds, so the frame at 2 / 30 s is stamped 0.067
MAX_DURATION_S = (
    360_000  # 100 hours; a longer duration is wrong, and its sample times would exhaust the memory
)
MAX_TEXT_CHARS = 20_000_000  # of all text tracks; each cue counts CUE_CHARS more
CUE_CHARS = 50
LIMITS = Limits()
TS_DISCONT = 0x200  # FFmpeg's AVFMT_TS_DISCONT


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoInfo:
    """Properties of a video, from its header and first frame. Headers may have a wrong duration and number of frames."""

    duration_s: float | None
    width: int  # as shown: after rotation and sample aspect ratio
    height: int
    fps: float | None  # mean
    codec: str
    num_frames: int | None
    rotation: int  # degrees, counter-clockwise, to turn the stored frame upright
    sar: float  # width of a stored pixel over its height


class TextCue(NamedTuple):
    """One subtitle of a text track in the file; times in seconds."""

    start_s: float
    end_s: float
    text: str
    lang: str | None  # as stated by the track


@contextmanager
def open_video(
    root: str, video: str, limits: Limits = LIMITS, *, num_bytes: int | None = None
) -> Iterator[Video]:
    """Yields the open `Video` at path `video` below `root` (a folder or fsspec URL).

    num_bytes: the expected size of the file, from its row. Raises RowFault: bad_path, no_file, video_changed, no_video,
    broken_video, too_many_pixels, deadline, too_many_errors.
    """
    with video_file(root, video, num_bytes) as file, open_file(file, video, limits) as opened:
        yield opened


@contextmanager
def open_file(
    file: str | Any, video: str, limits: Limits = LIMITS, buffer_bytes: int | None = None
) -> Iterator[Video]:
    """Yields the open `Video` of a file as in `container`. Raises RowFault as `open_video`, except those of its path."""
    budget = Budget(video, limits)
    with container(
        file, video, timeout_s=limits.deadline_s, max_pixels=limits.max_pixels, buffer_bytes=buffer_bytes
    ) as opened:
        yield Video(opened, budget)


def probe(root: str, video: str, limits: Limits = LIMITS, *, num_bytes: int | None = None) -> VideoInfo:
    """Returns the properties of a video from its header and first frame. Raises RowFault as `open_video`."""
    with open_video(root, video, limits, num_bytes=num_bytes) as opened:
        return opened.info


def sample_times(start_s: float, end_s: float, fps: float) -> npt.NDArray[np.float64]:
    """Returns the times start_s + k / fps, k = 0, 1, ..., below end_s, in seconds. Raises ValueError for bad arguments."""
    if not fps > 0 or not math.isfinite(end_s - start_s):
        raise ValueError(
            f"start_s and end_s must be finite and fps more than 0, got start_s={start_s}, end_s={end_s}, fps={fps}"
        )
    num = math.ceil(round((end_s - start_s) * fps, 6))  # (0.4 - 0.1) * 10 is 3.0000000000000004
    return start_s + np.arange(max(0, num)) / fps


def asked(
    times_s: Sequence[float] | npt.NDArray[np.float64], size: Size | Sequence[Size]
) -> tuple[npt.NDArray[np.float64], Sequence[Size]]:
    """Returns the arguments of `Video.frames` as (times (N,), N sizes). Raises ValueError as it."""
    times = np.asarray(times_s, np.float64)
    if len(times) and (not np.isfinite(times).all() or (np.diff(times) < 0).any()):
        raise ValueError(
            f"times_s, the times of the frames in seconds, must be finite and ascending, got {times[:8]}"
        )
    sizes = [size] * len(times) if isinstance(size, Size) else size
    if len(sizes) != len(times):
        raise ValueError(f"wanted one size, or one per time; got {len(sizes)} for {len(times)} times")
    return times, sizes


class Video:
    """An open video. `frames` may be called repeatedly, with windows in any order, but not from several threads."""

    def __init__(self, opened: InputContainer, budget: Budget) -> None:
        self._container, self._budget = opened, budget
        self._stream = _video_stream(opened, budget)
        self._zero_s = _zero_s(opened)
        self._reformatter = need_av().video.reformatter.VideoReformatter()
        self._sar = float(self._stream.sample_aspect_ratio or 1)
        complete_index(opened, self._stream, budget)
        self._walk = Walk(opened, self._stream, budget)
        self._keys = Keys(opened, self._stream, self._walk.delay)
        self.info = self._read_info()
        budget.pause()

    def frames(
        self, times_s: Sequence[float] | npt.NDArray[np.float64], size: Size | Sequence[Size]
    ) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
        """Yields (index into times_s, RGB frame (H, W, 3) uint8) per time; times in seconds, ascending.

        size: of all frames, or a size per time: a time may be there several times, with one size each, and its frame is
        decoded once. Times past the end are omitted; a time before the first frame gets the first frame. Raises RowFault:
        deadline, too_many_errors, too_many_pixels, broken_video, no_frames_in_window (all times are past the end);
        ValueError if times are not finite and ascending, or sizes are not as many.
        """
        times, sizes = asked(times_s, size)
        shown: tuple[VideoFrame, dict[Size, npt.NDArray[np.uint8]]] | None = None
        self._budget.go_on()
        for index, frame in self._at(times):
            self._budget.check()  # also if no packet is read, because a frame is shown for hours
            if shown is None or shown[0] is not frame:
                shown = frame, {}
            before = shown[1].get(sizes[index])
            picture = self._picture(frame, sizes[index]) if before is None else before.copy()
            shown[1][sizes[index]] = picture
            self._budget.pause()
            yield index, picture
            self._budget.go_on()
        self._budget.pause()
        if len(times) and shown is None:
            detail = f"{self._budget.video}: the video ends before {times[0]:g} s, the first time to read"
            raise RowFault("no_frames_in_window", detail)

    def subtitles(self) -> list[TextCue]:
        """Returns the cues of all text tracks, track by track, in file order; times on the video's clock, in seconds.

        Bitmap tracks are omitted. Raises RowFault (bad_subtitles) above MAX_TEXT_CHARS in total.
        """
        self._budget.go_on()
        cues: list[TextCue] = []
        num_chars = 0
        for cue in (cue for stream in self._container.streams.subtitles for cue in self._track(stream)):
            cues.append(cue)
            num_chars += len(cue.text) + CUE_CHARS
            if num_chars > MAX_TEXT_CHARS:
                detail = f"{self._budget.video}: its text tracks have more than {MAX_TEXT_CHARS} characters"
                raise RowFault("bad_subtitles", detail)
        self._walk.seek(self._walk.first)
        self._budget.pause()
        return cues

    def _track(self, stream: SubtitleStream) -> Iterator[TextCue]:
        error = need_av().FFmpegError
        if stream.codec_context is None:  # no decoder for it
            return
        try:
            self._container.seek(0)
        except error as caught:
            self._budget.bad(caught)
            return
        for packet in packets(self._container, stream, self._budget):
            try:
                entries = packet.decode()
            except error as caught:
                self._budget.bad(caught)
            else:
                yield from self._cues(packet, entries, stream.language)

    def _cues(self, packet: object, entries: Sequence[object], lang: str | None) -> Iterator[TextCue]:
        pts, duration, base = (getattr(packet, name) for name in ("pts", "duration", "time_base"))
        if pts is None:
            return
        start_s = float(pts * base) - self._zero_s
        for entry in entries:
            raw = getattr(entry, "dialogue", None)
            if raw:
                text = raw.decode("utf-8", "replace")
                yield TextCue(start_s, start_s + float((duration or 0) * base), text, lang)

    def _at(self, times: npt.NDArray[np.float64]) -> Iterator[tuple[int, VideoFrame]]:
        """Yields (index, frame shown at that time): decodes up to that frame, or seeks if a key frame lies in between."""
        ticks = self._ticks(times)
        key = self._keys.before(ticks[0]) if ticks else -1
        for index, tick in enumerate(ticks):
            next_key = self._keys.before(ticks[index + 1]) if index + 1 < len(ticks) else -1
            if self._is_over(tick):
                return
            if not self._walk.can_reach(tick) or key > self._walk.reached:
                self._walk.seek(tick)
            frame = self._walk.frame_at(tick, next_key)
            if frame is None or self._is_over(tick):
                return
            yield index, frame
            key = next_key

    def _is_over(self, tick: int) -> bool:
        return self._walk.end is not None and tick >= self._walk.end

    def _ticks(self, times: npt.NDArray[np.float64]) -> list[int]:
        """Converts seconds to ticks, units of the stream's time base; times before the first frame become its start."""
        ticks = np.floor((times + self._zero_s + SLACK_S) / float(self._stream.time_base or 1))
        return np.clip(ticks, self._walk.first, FAR).astype(np.int64).tolist()

    def _picture(self, frame: VideoFrame, size: Size) -> npt.NDArray[np.uint8]:
        target = fit(size, frame.width, frame.height, self._sar, frame.rotation)
        self._budget.need_pixels(target.width, target.height)
        try:
            scaled = self._reformatter.reformat(frame, target.width, target.height, "rgb24", threads=1)
        except need_av().FFmpegError as error:  # unsupported colour format
            detail = f"{self._budget.video}: a frame cannot be converted to RGB: {said(error)}"
            raise RowFault("broken_video", detail) from error
        return target.finish(scaled.to_ndarray())

    def _read_info(self) -> VideoInfo:
        stream, frame = self._stream, self._walk.first_frame
        width, height = shown_size(frame.width, frame.height, self._sar, frame.rotation)
        self._budget.need_pixels(width, height)
        duration = self._container.duration
        return VideoInfo(
            duration_s=duration / 1e6 if duration and 0 < duration <= MAX_DURATION_S * 1e6 else None,
            width=width,
            height=height,
            fps=float(stream.average_rate) if stream.average_rate else None,
            codec=stream.codec_context.name,
            num_frames=stream.frames or None,
            rotation=frame.rotation,
            sar=self._sar,
        )


def _video_stream(opened: InputContainer, budget: Budget) -> VideoStream:
    """Returns the best video stream by FFmpeg's rules, except cover images. Raises RowFault: no_video, too_many_pixels."""
    from av.stream import Disposition
    from av.video.stream import VideoStream

    stream = opened.streams.best("video")
    if stream is None or stream.disposition & Disposition.attached_pic:
        kinds = ", ".join(sorted({stream.type for stream in opened.streams})) or "nothing"
        raise RowFault("no_video", f"{budget.video} has no video stream; it has {kinds}")
    assert isinstance(stream, VideoStream)
    context = stream.codec_context
    if context is None:  # possible, although not in PyAV's type annotations
        raise RowFault("no_video", f"{budget.video}: FFmpeg has no decoder for its video stream")
    budget.need_pixels(context.width, context.height)
    context.thread_count = 1
    context.options = {"max_pixels": str(budget.limits.max_pixels)}  # the size may change within the stream
    return stream


def _zero_s(opened: InputContainer) -> float:
    """Returns the time stamp that counts as 0 s: 0, or the start time for formats with an arbitrary start (MPEG-TS)."""
    if opened.format.flags & TS_DISCONT and opened.start_time is not None:
        return opened.start_time / 1e6
    return 0.0
