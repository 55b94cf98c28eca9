from __future__ import annotations

import colorsys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from PIL import Image, ImageDraw

from vlpipe.pipeline.testing import run_map
from vlpipe.stages.clips.frame_signals import FrameSignals
from vlpipe.stages.video.frame_measures import (
    colour_change,
    frame_facts,
    frame_hash,
    hsv_histogram,
    motion,
    sharpness,
    text_share,
)

Pictures = npt.NDArray[np.uint8]
SIDE = 48


def noise(seed: int, num: int = 1) -> Pictures:
    """Sharp coloured pictures, each of its own palette."""
    rng = np.random.default_rng(seed)
    palette = rng.integers(0, 256, (3, 3))
    return palette[rng.integers(0, 3, (num, SIDE, SIDE))].astype(np.uint8)


def still(picture: Pictures, num: int) -> Pictures:
    return np.repeat(picture, num, 0)


def clip_rows(*clips: tuple[Path, float, float]) -> pa.Table:
    return pa.table(
        {
            "id": [f"clip{n}" for n in range(len(clips))],
            "video": [path.name for path, _, _ in clips],
            "num_bytes": pa.array(
                [path.stat().st_size if path.exists() else 1 for path, _, _ in clips], pa.int64()
            ),
            "start_s": pa.array([start for _, start, _ in clips], pa.float64()),
            "end_s": pa.array([end for _, _, end in clips], pa.float64()),
        }
    )


def test_text_on_a_picture_is_seen_and_more_of_it_is_more() -> None:
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    scene = Image.fromarray(coarse).resize((320, 240), Image.Resampling.BICUBIC)
    shares = []
    for lines in range(4):
        picture = scene.copy()
        draw = ImageDraw.Draw(picture)
        for line in range(lines):
            draw.rectangle((20, 180 + 16 * line, 300, 194 + 16 * line), fill="black")
            draw.text((24, 181 + 16 * line), "stir the butter into the flour slowly and wait", fill="white")
        shares.append(text_share(np.asarray(picture.convert("L"), np.float32)))
    assert shares[0] == 0
    assert shares == sorted(set(shares))
    assert 0.02 < shares[1] < 0.2


def test_flat_and_tiny_pictures_have_no_text() -> None:
    assert text_share(np.zeros((96, 128), np.float32)) == 0
    assert text_share(np.zeros((3, 5), np.float32)) == 0


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory, write_video: Callable[..., Path]) -> Path:
    """8 frames a second: 2 s of a still, 2 s of another, 1 s of black, 1 s of changing pictures."""
    dark = np.zeros((8, SIDE, SIDE, 3), np.uint8)
    pictures = np.concatenate([still(noise(1), 16), still(noise(2), 16), dark, noise(3, 8)])
    return write_video(tmp_path_factory.mktemp("film") / "-film.mov", pictures, fps=8)


def measured(film: Path, *clips: tuple[float, float], **asked: Any) -> list[dict[str, Any]]:
    table = clip_rows(*((film, start, end) for start, end in clips))
    return list(run_map(FrameSignals(videos=str(film.parent), side=SIDE, **asked), table).table.to_pylist())


def test_what_the_signals_say(film: Path) -> None:
    still_one, cut, black, busy, short = measured(film, (0, 2), (1, 3), (4, 5), (5, 6), (0.3, 0.4))
    names = ("frames_seen", "static_ratio", "num_cuts", "black_ratio", "blur_ratio")
    assert [still_one[n] for n in names] == [8, 1, 0, 0, 0]
    assert [cut[n] for n in names] == [8, pytest.approx(6 / 7), 1, 0, 0]
    assert [black[n] for n in names] == [4, 1, 0, 1, 1]
    assert [busy[n] for n in names] == [4, 0, 0, 0, 0]  # the same colours in other places: no cut
    assert [short[n] for n in names] == [1, None, 0, 0, 0]  # between two points of the grid
    assert (still_one["motion"], short["motion"]) == (0, None)
    assert busy["motion"] > 20
    assert still_one["frame_hash"] == short["frame_hash"] != cut["frame_hash"]
    assert black["frame_hash"] is None


def test_against_frames_at_hand(film: Path) -> None:
    pictures = noise(3, 8)
    facts = [frame_facts(pictures[k]) for k in (0, 2, 4, 6)]
    moved = [motion(a, b) for a, b in pairwise(facts)]
    (busy,) = measured(film, (5, 6))
    assert busy["motion"] == pytest.approx(np.mean(moved), rel=1e-6)
    assert busy["frame_hash"] == frame_hash(pictures[4])


def test_a_clip_is_the_same_in_any_company(film: Path) -> None:
    clips = [(0, 2), (1, 3.3), (4.2, 5), (0.3, 0.4), (2, 6), (1, 3.3)]
    together = measured(film, *clips)
    for clip, row in zip(clips, together, strict=True):
        alone = measured(film, clip)[0]
        assert {**alone, "id": ""} == {**row, "id": ""}


def test_faults_have_names(film: Path) -> None:
    gone = film.parent / "gone.mov"
    changed = clip_rows((film, 0, 1)).set_column(2, "num_bytes", pa.array([7], pa.int64()))
    table = pa.concat_tables(
        [
            clip_rows((film, 0, 1), (film, 50, 60), (gone, 0, 1)),
            changed.set_column(0, "id", pa.array(["other"])),
        ]
    )
    out = run_map(FrameSignals(videos=str(film.parent)), table)
    assert out.table["id"].to_pylist() == ["clip0"]
    assert {r.id: (r.kind, r.why) for r in out.rejects} == {
        "clip1": ("fault", "no_frames_in_window"),
        "clip2": ("fault", "no_file"),
        "other": ("fault", "video_changed"),
    }


def test_histogram_against_colorsys() -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    picture[:4] = picture[:4, :, :1]  # greys have no hue
    counts = np.zeros(12 * 4 * 4)
    for r, g, b in picture.reshape(-1, 3).tolist():
        hue, _, _ = colorsys.rgb_to_hsv(r / 255, g / 255, b / 255)
        high, chroma = max(r, g, b), max(r, g, b) - min(r, g, b)
        place = min(int(hue * 12 + 1e-9), 11), chroma * 3 // max(high, 1), high * 4 // 256
        counts[np.ravel_multi_index(place, (12, 4, 4))] += 1
    assert (
        np.abs(hsv_histogram(picture) * 600 - counts).sum() <= 4
    )  # a hue on an edge may fall to either side


def test_sharpness_falls_with_blur() -> None:
    luma = frame_facts(noise(5)[0]).luma
    blurred = (luma[:-1, :-1] + luma[1:, :-1] + luma[:-1, 1:] + luma[1:, 1:]) / 4
    assert sharpness(blurred) < sharpness(luma) / 4
    assert sharpness(np.full((9, 9), 7, np.float32)) == 0
    ramp = np.arange(81, dtype=np.float32).reshape(9, 9)
    assert sharpness(ramp) == 0  # a Laplacian does not see slopes


def test_colour_change_is_a_share_of_pixels() -> None:
    red, half = np.zeros((16, 16, 3), np.uint8), np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = half[..., 0] = 200
    half[8:] = (0, 0, 200)
    a, b = frame_facts(red), frame_facts(half)
    assert colour_change(a, b) == pytest.approx(0.5)
    assert colour_change(a, a) == 0


def test_the_frames_of_a_clip_are_limited(film: Path) -> None:
    stage = FrameSignals(videos=str(film.parent), side=SIDE, fps=10, max_frames=10)
    out = run_map(stage, clip_rows((film, 0, 1), (film, 0, 1.1), (film, 0, 1e9)))
    assert out.table.num_rows == 1
    assert [(r.why, r.detail) for r in out.rejects] == [
        (
            "too_many_windows",
            f"{film.name}: the row needs more than 10 frames, the limit that `max_frames` sets",
        )
    ] * 2
