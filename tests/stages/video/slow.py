"""The slow way, which nobody doubts: decode everything, then look up the frame on show."""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from vlpipe.stages.video.decode import SLACK_S


def all_frames(path: Path, width: int, height: int) -> tuple[list[tuple[float, np.ndarray]], float]:
    """(begin in seconds, picture of this size) of all frames that decode, by begin; and when the last one ends."""
    found: list[tuple[int, int, np.ndarray]] = []
    scaler = VideoReformatter()
    with av.open(f"file:{path}") as opened:
        stream = opened.streams.best("video")
        assert isinstance(stream, av.VideoStream)
        stream.codec_context.thread_count = 1
        for packet in opened.demux(stream):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                continue
            for frame in frames:
                if frame.pts is not None and frame.pts >= 0:
                    found.append((frame.pts, frame.duration, picture(scaler, frame, width, height)))
        rate, base = stream.average_rate or stream.guessed_rate, stream.time_base
        zero_s = opened.start_time / 1e6 if opened.format.name in ("mpegts", "mpeg") else 0
    if (
        path.suffix == ".avi"
    ):  # it holds no times: FFmpeg counts packets, but frames come out in their right order
        found = [(pts, *one[1:]) for pts, one in zip(sorted(one[0] for one in found), found, strict=True)]
    found.sort(key=lambda one: one[0])
    end_s = float((found[-1][0] + found[-1][1]) * base if found[-1][1] else found[-1][0] * base + 1 / rate)
    return [(float(pts * base) - zero_s, shown) for pts, _, shown in found], end_s - zero_s


def picture(scaler: VideoReformatter, frame: av.VideoFrame, width: int, height: int) -> np.ndarray:
    turns = round(frame.rotation / 90) % 4
    size = (height, width) if turns % 2 else (width, height)
    return np.rot90(scaler.reformat(frame, *size, "rgb24").to_ndarray(), turns)


def slow_frames(path: Path, times_s: list[float], width: int, height: int) -> dict[int, np.ndarray]:
    """Index of the time -> picture (height, width, 3)."""
    frames, end_s = all_frames(path, width, height)
    begins = [begin for begin, _ in frames]
    on_show = {k: max(0, bisect_right(begins, time_s + SLACK_S) - 1) for k, time_s in enumerate(times_s)}
    return {k: frames[at][1] for k, at in on_show.items() if times_s[k] + SLACK_S < end_s}
