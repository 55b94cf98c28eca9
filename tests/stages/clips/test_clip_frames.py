from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from vlpipe.pipeline.shard import is_heavy
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.clips.frames import ClipFrames
from vlpipe.stages.common.by_video import grid
from vlpipe.stages.common.row import TEXTS, text

PICTURES = np.random.default_rng(0).integers(0, 256, (10, 24, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory, write_video: Callable[..., Path]) -> Path:
    return write_video(tmp_path_factory.mktemp("film") / "film.mov", PICTURES, fps=1)


def clips(film: Path, *times: tuple[float, float]) -> pa.Table:
    return pa.table(
        {
            "id": [f"clip{n}" for n in range(len(times))],
            "url": ["http://x/film.mov"] * len(times),
            "video": [film.name] * len(times),
            "num_bytes": pa.array([film.stat().st_size] * len(times), pa.int64()),
            "start_s": pa.array([a for a, _ in times], pa.float64()),
            "end_s": pa.array([b for _, b in times], pa.float64()),
            "texts": pa.array([[text(f"clip {n}", "human")] for n in range(len(times))], TEXTS),
        }
    )


def test_frames_are_the_pictures_on_show(film: Path) -> None:
    out = run_map(
        ClipFrames(videos=str(film.parent), num_frames=2, side=24), clips(film, (0, 4), (2, 3), (8, 20))
    )
    rows = out.table.to_pylist()
    assert [(r["parent"], r["time_s"]) for r in rows] == [
        ("clip0", 1),
        ("clip0", 3),
        ("clip1", 2.25),
        ("clip1", 2.75),
    ]
    assert [(r.id, r.why) for r in out.rejects] == [("clip2", "no_frames_in_window")]
    for row in rows:
        image = Image.open(io.BytesIO(row["image"]))
        assert (np.asarray(image) == PICTURES[int(row["time_s"])]).all()
        assert (row["format"], row["width"], row["height"]) == ("PNG", 32, 24)
        assert row["url"] == f"http://x/film.mov#t={row['time_s']:.3f}"
        assert [t["text"] for t in row["texts"]] == ["clip " + row["parent"][-1]]
    assert len({row["id"] for row in rows}) == 4
    assert is_heavy(out.table.schema.field("image"))


def test_a_clip_gives_the_same_frames_in_any_company(film: Path) -> None:
    stage = ClipFrames(videos=str(film.parent), num_frames=3, side=16)
    times = [(0.0, 4.0), (1.0, 9.5), (0.0, 4.0), (30.0, 31.0), (3.3, 3.4)]
    together = run_map(stage, clips(film, *times))
    alone = [run_map(stage, clips(film, *times).slice(n, 1)) for n in range(len(times))]
    assert pa.concat_tables([one.table for one in alone]).to_pylist() == together.table.to_pylist()
    assert [r for one in alone for r in one.rejects] == together.rejects


@pytest.mark.parametrize(
    ("start_s", "end_s", "fps", "found"),
    [
        (0, 1, 4, [0, 1, 2, 3]),
        (0.3, 0.3, 10, [2]),
        (0.1, 0.3, 10, [1, 2]),  # 0.3 * 10 is more than 3 for a computer
        (0.26, 0.3, 4, [1]),
        (0, 0, 4, [0]),
        (2.5, 3.01, 1, [3]),
    ],
)
def test_grid(start_s: float, end_s: float, fps: float, found: list[int]) -> None:
    assert list(grid(start_s, end_s, fps)) == found
