"""Video rows with cues, for the pairing rules; small lossless videos, for what looks at frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from vlpipe.stages.video.rows import VIDEOS


def cue(start_s: float | None, end_s: float | None, text: str | None, **more: Any) -> dict[str, Any]:
    found = {"start_s": start_s, "end_s": end_s, "text": text, "words": None, "source": "auto", "lang": "en"}
    return {**found, **more}


@pytest.fixture(scope="session")
def make_cue() -> Callable[..., dict[str, Any]]:
    return cue


@pytest.fixture(scope="session")
def videos() -> Callable[..., pa.Table]:
    """videos(cues per video, duration_s=None): rows `video0`, `video1`, ..."""

    def make(cues: Sequence[Sequence[Any] | None], duration_s: float | None = None) -> pa.Table:
        rows = []
        for number, some in enumerate(cues):
            full = None if some is None else [c if isinstance(c, dict) else cue(*c) for c in some]
            file = {"url": f"{number}.mp4", "video": f"{number}.mp4", "num_bytes": 1, "sha256": "0"}
            about = {"width": 64, "height": 48, "fps": 25.0, "codec": "h264", "duration_s": duration_s}
            rows.append({"id": f"video{number}", **file, **about, "video_id": str(number), "cues": full})
        return pa.Table.from_pylist(rows, VIDEOS)

    return make


@pytest.fixture(scope="session")
def write_video() -> Callable[..., Path]:
    """write_video(path, pictures (N, H, W, 3) uint8, fps): lossless, one frame each 1 / fps s."""
    import av

    def write(path: Path, pictures: npt.NDArray[np.uint8], fps: int = 8) -> Path:
        with av.open(str(path), "w") as out:
            stream = out.add_stream("png", rate=fps)
            stream.height, stream.width = pictures.shape[1:3]
            stream.pix_fmt = "rgb24"
            for picture in pictures:
                out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
            out.mux(stream.encode(None))
        return path

    return write
