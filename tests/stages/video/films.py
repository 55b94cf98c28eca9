"""Small films whose frames say their own number: bits as black and white bars, read back from decoded pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

NUM_BITS = 10
BAR_PX = 8
WIDTH, HEIGHT = NUM_BITS * BAR_PX, 32
TICKS = 1000  # time stamps per second


def numbered(number: int) -> np.ndarray:
    """(HEIGHT, WIDTH, 3): the lowest bit on the left."""
    bits = [(number >> k) & 1 for k in range(NUM_BITS)]
    row = np.repeat(np.array(bits, np.uint8) * 255, BAR_PX)
    return np.broadcast_to(row[None, :, None], (HEIGHT, WIDTH, 3)).copy()


def number_of(picture: np.ndarray) -> int:
    """The number a picture of whatever size shows; fails when a bar is neither black nor white."""
    height, width = picture.shape[:2]
    centres = ((np.arange(NUM_BITS) + 0.5) * width / NUM_BITS).astype(int)
    levels = picture[height // 4 : -height // 4, centres].astype(float).mean(axis=(0, 2))
    assert np.minimum(levels, 255 - levels).max() < 80, levels
    return int(sum(1 << k for k, level in enumerate(levels) if level > 127))


def film(
    path: Path,
    num_frames: int = 60,
    *,
    times_s: Sequence[float] | None = None,
    fps: float = 30,
    gop: int = 12,
    b_frames: int = 0,
    open_gop: bool = False,
    codec: str = "libx264",
    picture: Callable[[int], np.ndarray] = numbered,
    sar: Fraction | None = None,
    rotation: int = 0,
    options: dict[str, str] | None = None,
    format: str | None = None,
    text: Sequence[tuple[float, float, str]] = (),
) -> Path:
    """Frame k shows k and begins at times_s[k], or k / fps."""
    times = [k / fps for k in range(num_frames)] if times_s is None else list(times_s)
    with av.open(str(path), "w", format=format, options=options or {}) as out:
        stream = out.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
        first = picture(0)
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = "yuv420p"
        if codec != "mpeg2video":  # it counts frames
            stream.time_base = stream.codec_context.time_base = Fraction(1, TICKS)
        stream.gop_size, stream.max_b_frames = gop, b_frames
        stream.options = coding(codec, gop, open_gop)
        if sar:
            stream.codec_context.sample_aspect_ratio = sar
        if rotation:
            stream.set_display_rotation(rotation)
        track = out.add_stream("mov_text" if path.suffix == ".mp4" else "subrip") if text else None
        for number, time_s in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts, frame.time_base = round(time_s * TICKS), Fraction(1, TICKS)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
        assert track is None
    return path


def coding(codec: str, gop: int, open_gop: bool) -> dict[str, str]:
    if codec == "libx264":  # b-adapt=0: as many B-frames as are allowed, though these pictures are easy
        more = f"b-adapt=0:scenecut=0:keyint={gop}:min-keyint={gop}:open-gop={int(open_gop)}"
        return {"preset": "veryfast", "crf": "12", "x264-params": more}
    return (
        {"deadline": "realtime", "cpu-used": "8", "crf": "10", "b": "0"} if codec.startswith("libvpx") else {}
    )


def frame_times(path: Path) -> list[float]:
    """When each frame begins, from a plain decode."""
    with av.open(str(path)) as opened:
        return sorted(float(f.pts * f.time_base) for f in opened.decode(video=0))


Kwargs = dict[str, Any]
