"""Ways to get frames of a video at given times as 224 x 224 RGB, each in a process that does one job after another.

A worker: reads lines {"way", "path", "clips": [[seconds, ...], ...]}, writes lines {"frames", "cpu_s", "wall_s",
"package"}. It runs under any Python; only vlpipe's own ways import vlpipe.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import Any

SIDE = 224
SLACK_S = 5e-4
Clips = list[list[float]]


def vlpipe(path: str, clips: Clips) -> int:
    """All times at once, in order."""
    return vlpipe_clip_by_clip(path, [sorted(at for clip in clips for at in clip)])


def vlpipe_clip_by_clip(path: str, clips: Clips) -> int:
    from vlpipe.stages.video.decode import Exact, open_video

    with open_video(os.path.dirname(path), os.path.basename(path)) as video:
        return sum(1 for times in clips for _ in video.frames(times, Exact(SIDE, SIDE)))


def pyav_sequential(path: str, clips: Clips) -> int:
    """Decode everything up to the last time, once."""
    times = sorted(at for clip in clips for at in clip)
    with opened(path) as (container, stream):
        return on_show(container.decode(stream), times)


def pyav_seek_per_time(path: str, clips: Clips) -> int:
    return pyav_seek_per_clip(path, [[at] for clip in clips for at in clip])


def pyav_seek_per_clip(path: str, clips: Clips) -> int:
    """Seek to the key frame before each clip, and decode to its end."""
    with opened(path) as (container, stream):
        num = 0
        for times in clips:
            container.seek(int(times[0] / stream.time_base), stream=stream)
            num += on_show(container.decode(stream), times)
        return num


def on_show(frames: Iterable[Any], times: list[float]) -> int:
    """Scale the frame on show at each time, with one scaler."""
    from av.video.reformatter import VideoReformatter

    scaler, num, shown = VideoReformatter(), 0, None
    for frame in frames:
        while num < len(times) and shown is not None and times[num] + SLACK_S < frame.time:
            scaler.reformat(shown, SIDE, SIDE, "rgb24", threads=1).to_ndarray()
            num += 1
        if num == len(times):
            return num
        shown = frame
    for _ in times[num:]:
        scaler.reformat(shown, SIDE, SIDE, "rgb24", threads=1).to_ndarray()
    return len(times)


class opened:
    def __init__(self, path: str) -> None:
        import av

        self.container = av.open(path)

    def __enter__(self) -> tuple[Any, Any]:
        stream = self.container.streams.video[0]
        stream.codec_context.thread_count = 1
        return self.container, stream

    def __exit__(self, *_: object) -> None:
        self.container.close()


def decord(path: str, clips: Clips) -> int:
    import decord as peer

    video = peer.VideoReader(path, ctx=peer.cpu(0), num_threads=1, width=SIDE, height=SIDE)
    fps = video.get_avg_fps()
    return sum(len(video.get_batch([int(at * fps + 0.01) for at in times]).asnumpy()) for times in clips)


def torchcodec(path: str, clips: Clips, seek_mode: str = "exact") -> int:
    import torch
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import Resize

    torch.set_num_threads(1)
    video = VideoDecoder(
        path,
        num_ffmpeg_threads=1,
        dimension_order="NHWC",
        seek_mode=seek_mode,
        transforms=[Resize(size=(SIDE, SIDE))],
    )
    end_s = video.metadata.end_stream_seconds - SLACK_S
    return sum(
        len(video.get_frames_played_at([min(at, end_s) for at in times]).data.numpy()) for times in clips
    )


def torchcodec_approximate(path: str, clips: Clips) -> int:
    return torchcodec(path, clips, "approximate")


WAYS: dict[str, Callable[[str, Clips], int]] = {
    "vlpipe": vlpipe,
    "vlpipe, clip by clip": vlpipe_clip_by_clip,
    "PyAV, sequential": pyav_sequential,
    "PyAV, seek per time": pyav_seek_per_time,
    "PyAV, seek per clip": pyav_seek_per_clip,
    "decord": decord,
    "torchcodec, exact": torchcodec,
    "torchcodec, approximate": torchcodec_approximate,
}


def package(way: str) -> str:
    """What decodes, with its version."""
    name = next((one for one in ("decord", "torchcodec") if way.startswith(one)), "av")
    return f"{name} {version(name)}"


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries talk
    for line in sys.stdin:
        job = json.loads(line)
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        num = WAYS[job["way"]](job["path"], job["clips"])
        said: dict[str, Any] = {
            "cpu_s": time.process_time() - cpu_s,
            "wall_s": time.perf_counter() - wall_s,
            "frames": num,
        }
        said["package"] = package(job["way"])
        print(json.dumps(said), file=answers, flush=True)


if __name__ == "__main__":
    main()
