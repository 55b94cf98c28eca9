"""Small videos, their rows, and random S3D weights as their authors store them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

HERE = str(Path(__file__).parent)
if HERE not in sys.path:  # for `video_list`, a user's own stage: found by Ray's workers too
    sys.path.insert(0, HERE)
os.environ["PYTHONPATH"] = os.pathsep.join(p for p in (HERE, os.environ.get("PYTHONPATH", "")) if p)

FPS, SIZE = 10, (48, 40)  # width, height


def make_video(path: Path, num_frames: int, seed: int = 0) -> None:
    """Coarse noise that moves: other pictures in every frame."""
    import av

    draw = np.random.default_rng(seed)
    texture = np.kron(draw.integers(0, 255, (24, 40, 3)), np.ones((4, 4, 1))).astype(np.uint8)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        stream.options = {"crf": "20", "preset": "ultrafast"}
        for k in range(num_frames):
            picture = np.roll(texture, -3 * k, axis=1)[: SIZE[1], : SIZE[0]]
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        out.mux(stream.encode(None))


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a.mp4 of 1.5 s, b.mp4 of 0.7 s, c.mp4 that is no video."""
    root = tmp_path_factory.mktemp("videos")
    make_video(root / "a.mp4", 15)
    make_video(root / "b.mp4", 7, seed=1)
    (root / "c.mp4").write_bytes(b"nothing " * 50)
    return root


@pytest.fixture(scope="session")
def video_rows(videos: Path) -> Callable[..., pa.Table]:
    """video_rows(names, start_s=[...], end_s=[...]): a name's first letter says which video."""

    def make(names: Iterable[str], **spans: list[float]) -> pa.Table:
        names = list(names)
        columns: dict[str, list[Any]] = {
            "id": [f"id-{name}" for name in names],
            "video": [f"{name[0]}.mp4" for name in names],
            "num_bytes": [os.path.getsize(videos / f"{name[0]}.mp4") for name in names],
            **spans,
        }
        return pa.table(columns)

    return make
