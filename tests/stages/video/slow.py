"""The slow way, which nobody doubts: decode everything, then look up the frame on show."""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from vlpipe.stages.video.decode import SLACK_S


def all_frames(path: Path) -> tuple[list[tuple[float, av.VideoFrame]], float]:
    """(begin in seconds, frame) of all frames that decode, by begin, and when the last one ends."""
    found: list[av.VideoFrame] = []
    with av.open(f"file:{path}") as opened:
        stream = opened.streams.best("video")
        assert isinstance(stream, av.VideoStream)
        stream.codec_context.thread_count = 1
        for packet in opened.demux(stream):
            try:
                found += packet.decode()
            except av.FFmpegError:
                continue
        rate, base = stream.average_rate or stream.guessed_rate, stream.time_base
        zero_s = opened.start_time / 1e6 if opened.format.name == "mpegts" else 0
    frames = [(float(f.pts * base) - zero_s, f) for f in found if f.pts is not None and f.pts >= 0]
    frames.sort(key=lambda pair: pair[0])
    last = frames[-1][1]
    return frames, frames[-1][0] + float(last.duration * base or (1 / rate if rate else base))


def slow_frames(path: Path, times_s: list[float], width: int, height: int) -> dict[int, np.ndarray]:
    """Index of the time -> picture of the stored orientation, scaled to (height, width, 3)."""
    frames, end_s = all_frames(path)
    begins, scaler = [begin for begin, _ in frames], VideoReformatter()
    found = {}
    for index, time_s in enumerate(times_s):
        if time_s + SLACK_S < end_s:
            frame = frames[max(0, bisect_right(begins, time_s + SLACK_S) - 1)][1]
            found[index] = scaler.reformat(frame, width, height, "rgb24").to_ndarray()
    return found
