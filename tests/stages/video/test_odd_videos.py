"""Real files with something odd about each: frames as decoding everything gives them, or a fault with a name; in time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from slow import slow_frames

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.video.decode import Exact, Limits, open_video, sample_times

ROOT = (
    Path(os.environ.get("VLPIPE_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))
    / "odd_videos"
)
MANIFEST = ROOT / "manifest.jsonl"
FILES = [json.loads(line) for line in MANIFEST.read_text().splitlines()] if MANIFEST.exists() else []
LIMITS = Limits(deadline_s=60)
DAMAGED = "decord/corrupted.mp4"  # what its frames look like depends on where decoding began
SHORT = "corkami_mini/matroska.mkv"  # one frame, of 1 ms

needs_data = pytest.mark.skipif(not FILES, reason=f"real data not found: {ROOT} (set VLPIPE_DATA)")


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize("said", FILES, ids=lambda said: said["file"])
def test_an_odd_file(said: dict[str, object]) -> None:
    name = str(said["file"])
    with open_video(str(ROOT), name, LIMITS, num_bytes=os.path.getsize(ROOT / name)) as video:
        length_s = video.info.duration_s or 10
        rng = np.random.default_rng(0)
        times = [0.0, *sorted(rng.uniform(0, 1.05 * length_s, 15)), 2 * length_s]
        found = dict(video.frames(times, Exact(48, 32)))
        assert said["rotation"] in (video.info.rotation, 0)
        assert all(picture.shape == (32, 48, 3) for picture in found.values())
    expected = slow_frames(ROOT / name, times, 48, 32)
    assert found.keys() == expected.keys()
    if name != DAMAGED:
        assert [k for k, picture in found.items() if (picture != expected[k]).any()] == []


@needs_data
@pytest.mark.parametrize("said", FILES, ids=lambda said: said["file"])
def test_cut_anywhere_it_ends_in_time(said: dict[str, object], tmp_path: Path) -> None:
    """The first part of the file, and the whole with noise in the middle: frames or a fault, within the deadline."""
    data = (ROOT / str(said["file"])).read_bytes()
    rng = np.random.default_rng(len(data))
    seconds = []
    for part in (0.02, 0.5, 0.9):
        (tmp_path / "cut").write_bytes(data[: int(part * len(data))])
        seconds.append(frames_or_fault(tmp_path, "cut"))
    noisy = bytearray(data)
    middle = len(data) // 2
    noisy[middle : middle + 2000] = rng.bytes(len(noisy[middle : middle + 2000]))
    for at in rng.integers(0, len(data), 20):
        noisy[at] ^= 0xFF
    (tmp_path / "noisy").write_bytes(bytes(noisy))
    seconds.append(frames_or_fault(tmp_path, "noisy"))
    assert max(seconds) < LIMITS.deadline_s


MEASURED = """
import json, sys
from vlpipe.stages.video.decode import Exact, open_video, sample_times
for line in open(sys.argv[1] + "/manifest.jsonl"):
    with open_video(sys.argv[1], json.loads(line)["file"]) as video:
        for _ in video.frames(sample_times(0, 5, 2), Exact(224, 224)):
            pass
print(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0])
"""


@pytest.mark.slow
@needs_data
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_bounded() -> None:
    run = subprocess.run(
        [sys.executable, "-c", MEASURED, str(ROOT)], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) < 200_000  # KiB; 80,000 when this was written


def frames_or_fault(root: Path, name: str) -> float:
    """Seconds until there were frames, or one of the faults a broken file may have."""
    began, frames, why = time.monotonic(), [], None
    try:
        with open_video(str(root), name, LIMITS) as video:
            frames = list(video.frames(sample_times(0, 4, 2), Exact(48, 32)))
            video.subtitles()
    except RowFault as fault:
        why = fault.why
    assert why in {None, "broken_video", "no_video", "too_many_errors", "no_frames_in_window"}
    assert frames or why
    return time.monotonic() - began


def test_embedded_text(data: Callable[[str], Path]) -> None:
    root = data("odd_videos")
    with open_video(str(root), "torchcodec/nasa_13013.mp4") as video:
        before = next(video.frames([3.0], Exact(48, 32)))[1]
        cues = video.subtitles()
        assert (next(video.frames([3.0], Exact(48, 32)))[1] == before).all()
    assert len(cues) == 8
    assert cues[0] == (0.21, 4.26, "NAR: This is the optical and science segment of the Webb", "eng")
    for name in ("auto_editor/webvtt.mkv", "auto_editor/mov_text.mp4"):
        with open_video(str(root), name) as video:
            found = [(round(c.start_s, 2), round(c.end_s, 2), c.text) for c in video.subtitles()]
        assert found[0][2] == "oop"
        assert found[1][2] == "boop"
