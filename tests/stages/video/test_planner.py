"""However few packets are decoded, the frames are those of decoding everything: pixel for pixel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from films import HEIGHT, WIDTH, Kwargs, film
from slow import slow_frames

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.video.decode import Exact, open_video

FILMS: dict[str, Kwargs] = {
    "every frame a key": {"gop": 1},
    "gop 12": {"gop": 12},
    "gop 12, reordered": {"gop": 12, "b_frames": 3},
    "open gop": {"gop": 12, "b_frames": 3, "open_gop": True},
    "gop 250, reordered": {"gop": 250, "b_frames": 3, "num_frames": 300},
    "25 fps, gop 30": {"gop": 30, "b_frames": 2, "fps": 25},
    "29.97 fps": {"fps": 30000 / 1001, "b_frames": 2},
    "vp9": {"codec": "libvpx-vp9", "gop": 24},
    "mpeg4": {"codec": "mpeg4", "gop": 12, "b_frames": 2},
}
ENDINGS = {"vp9": (".webm",), "mpeg4": (".mp4", ".avi")}


def cases() -> list[tuple[str, str]]:
    return [(name, end) for name in FILMS for end in ENDINGS.get(name, (".mp4", ".mkv", ".ts"))]


def check(path: Path, times_s: list[float], size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    """One call for all times, and a call for each time on one open video."""
    expected = slow_frames(path, times_s, *size)
    with open_video(str(path.parent), path.name) as video:
        at_once = dict(video.frames(times_s, Exact(*size)))
        each: dict[int, np.ndarray] = {}
        for index in np.random.default_rng(0).permutation(len(times_s))[:12]:
            try:
                each |= {int(index): p for _, p in video.frames([times_s[index]], Exact(*size))}
            except RowFault as caught:
                assert caught.why == "no_frames_in_window"
                assert index not in expected
    assert at_once.keys() == expected.keys()
    for found in (at_once, each):
        assert [k for k, picture in found.items() if (picture != expected[k]).any()] == []


def random_times(end_s: float, num: int, seed: int) -> list[float]:
    return sorted(np.random.default_rng(seed).uniform(0, end_s * 1.1, num).tolist())


@pytest.mark.parametrize(("name", "end"), cases())
def test_the_same_frames_as_decoding_everything(tmp_path: Path, name: str, end: str) -> None:
    path = film(tmp_path / f"a{end}", **{"num_frames": 100, **FILMS[name]})
    for times in (
        [k / 30 for k in range(100)],
        [0.2, 1, 2, 3],
        random_times(3.4, 8, 0),
        random_times(3.4, 40, 1),
    ):
        check(path, times)
