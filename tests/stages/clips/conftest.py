"""Video rows with cues, for the pairing rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

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
