"""A small real video."""

from __future__ import annotations

import io

import av
import numpy as np


def clip(num_frames: int = 20, fps: int = 10, size: tuple[int, int] = (48, 32), seed: int = 0) -> bytes:
    """An MP4 of noise: num_frames / fps seconds of (width, height)."""
    rng, file = np.random.default_rng(seed), io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        stream = out.add_stream("mpeg4", rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for _ in range(num_frames):
            pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(stream.encode(None))
    return file.getvalue()
