"""The film of the decoding benchmark: 456 x 256, 30 frames per second, H.264 with B-frames; texture, motion, cuts, noise."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np

WIDTH, HEIGHT, FPS = 456, 256, 30  # the size of HowTo100M's smaller copies
SCENE_S = 7


def write(path: Path, seconds: int, gop: int) -> None:
    import av

    rng = np.random.default_rng(0)
    ground = _ground(rng)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.gop_size = gop
        stream.options = {"preset": "veryfast", "crf": "23", "bf": "3"}
        for number in range(seconds * FPS):
            frame = av.VideoFrame.from_ndarray(_picture(ground, number, rng), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def _ground(rng: np.random.Generator) -> np.ndarray:
    """(1024, 1824, 3): soft noise."""
    from PIL import Image

    small = Image.fromarray(rng.integers(0, 240, (64, 128, 3), dtype=np.uint8))
    return np.asarray(small.resize((4 * WIDTH, 4 * HEIGHT), Image.Resampling.BICUBIC))


def _picture(ground: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    """A camera that pans over the ground, a bright square that crosses it, and sensor noise."""
    scene = number // (FPS * SCENE_S)
    top, left = (
        int(300 + 250 * np.sin(number / 90 + scene)),
        int(600 + 500 * np.sin(number / 130 + 2 * scene)),
    )
    picture = np.roll(ground[top : top + HEIGHT, left : left + WIDTH], scene, axis=2).copy()
    x, y = number * 3 % (WIDTH - 40), int(100 + 80 * np.sin(number / 20))
    picture[y : y + 40, x : x + 40] = (240, number % 240, 0)
    return np.minimum(picture, 247) + rng.integers(0, 8, (HEIGHT, WIDTH, 1), dtype=np.uint8)
