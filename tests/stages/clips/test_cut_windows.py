"""Clips get the feature windows of their video: those that the rule names, stored once, and read by the steps below."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlpipe.pipeline.errors import RowFault, SchemaError, VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import heavy, is_heavy, with_field
from vlpipe.pipeline.stage import PartsWork
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.clips import cut_windows
from vlpipe.stages.clips.cut_windows import Found
from vlpipe.stages.clips.milnce import MilNce
from vlpipe.stages.clips.spans import SpanClips
from vlpipe.stages.features.s3d import features_type
from vlpipe.stages.features.windows import read_windows

Videos = Callable[..., pa.Table]


def with_windows(videos: pa.Table, lengths: list[int], step_s: float = 1.0) -> pa.Table:
    """Video n has lengths[n] windows of `step_s` seconds, whose vectors are [n, number of the window]."""
    found = [
        [
            {"start_s": k * step_s, "end_s": (k + 1) * step_s, "feat": np.array([n, k], np.float16)}
            for k in range(length)
        ]
        for n, length in enumerate(lengths)
    ]
    table = videos.append_column(heavy("frame_feats", features_type(2)), pa.array(found, features_type(2)))
    return table.append_column("frame_weights", pa.array(["abc"] * len(videos)))


def spans(folder: Path, times: list[tuple[str, float, float]]) -> SpanClips:
    names, starts, ends = zip(*times, strict=True)
    table = {"video": names, "start_s": starts, "end_s": ends, "captions": ["a dog"] * len(times)}
    pq.write_table(pa.table(table), folder / "spans.parquet")
    return SpanClips(spans=File(path=str(folder / "spans.parquet")), windows=("frame_feats",))


def test_windows_with_their_centre_in_the_clip_else_the_nearest(tmp_path: Path, videos: Videos) -> None:
    times = [
        ("0.mp4", 0.0, 2.0),
        ("0.mp4", 1.4, 3.6),
        ("0.mp4", 2.6, 2.8),  # within window 2, without its centre
        ("0.mp4", 3.9, 9.0),
        ("1.mp4", 1.0, 2.0),
        ("1.mp4", 7.0, 8.0),  # after the last window
        ("2.mp4", 0.0, 1.0),  # the video has none
    ]
    rows = with_windows(videos([[], [], []]), [5, 3, 0]).slice(0)
    out = run_map(spans(tmp_path, times), rows)
    cut = [[tuple(v) for v in w.feats.tolist()] for w in read_windows(out.table["frame_feats"])]
    assert cut == [[(0, 0), (0, 1)], [(0, 1), (0, 2), (0, 3)], [(0, 2)], [(0, 4)], [(1, 1)]]
    assert out.counts == {"clips:no_window": 2}
    assert [(r.id, r.kind, r.why) for r in out.rejects] == [("video2", "filtered", "no_window")]
    assert out.table["start_s"].to_pylist() == [0.0, 1.4, 2.6, 3.9, 1.0]
    assert set(out.table["frame_weights"].to_pylist()) == {"abc"}
    assert is_heavy(spans(tmp_path, times).schema(rows.schema).field("frame_feats"))


def test_rows_of_chunks_and_slices_are_cut_alike(tmp_path: Path, videos: Videos) -> None:
    times = [(f"{n}.mp4", 0.5, 2.5) for n in range(4)]
    rows = with_windows(videos([[], [], [], []]), [4, 3, 2, 5])
    whole = run_map(spans(tmp_path, times), rows).table
    parts = pa.concat_tables([rows.slice(0, 1), rows.slice(1, 2), rows.slice(3)])
    assert run_map(spans(tmp_path, times), parts).table.equals(whole)
    assert run_map(spans(tmp_path, times), rows.slice(2)).table.equals(whole.slice(4 - 2))


def test_pairing_rules_cut_too_and_their_keys_stay(videos: Videos) -> None:
    rows = with_windows(videos([[(0.0, 4.0, "a dog runs"), (4.0, 8.0, "a cat sleeps")]]), [8])
    plain, cut = MilNce(min_time_s=3), MilNce(min_time_s=3, windows=("frame_feats",))
    assert "windows" in MilNce.ADDED
    assert plain.READS_HEAVY == ()
    assert cut.READS_HEAVY == ("frame_feats",)
    out = run_map(cut, rows).table
    assert out.drop_columns(["frame_feats", "frame_weights"]).equals(run_map(plain, rows).table)
    for row, windows in zip(out.to_pylist(), read_windows(out["frame_feats"]), strict=True):
        middles = (windows.start_s + windows.end_s) / 2
        assert ((middles >= row["start_s"]) & (middles < row["end_s"])).all()
        assert len(middles) == round(row["end_s"] - row["start_s"])


def test_mistakes_are_told(videos: Videos, tmp_path: Path) -> None:
    assert MilNce(windows=("frames",)).preflight() == [
        "windows: wanted some of s3d, frame_feats, context_feats, frame_looks; got ['frames']"
    ]
    with pytest.raises(
        SchemaError, match=r"reads column 'frame_feats', which no earlier step writes; add a step"
    ):
        MilNce(windows=("frame_feats",)).schema(videos([]).schema)
    with pytest.raises(
        SchemaError, match=r"'frame_looks', which no earlier step writes; set `looks:` of a step"
    ):
        MilNce(windows=("frame_looks",)).schema(videos([]).schema)
    rows = with_field(videos([]).schema, heavy("s3d", features_type(2)))
    with pytest.raises(SchemaError, match="s3d_weights"):
        MilNce(windows=("s3d",)).schema(rows)
    with pytest.raises(SchemaError, match="have a heavy column 's3d' from an earlier step already"):
        with_field(rows, heavy("s3d", features_type(4)))


def test_a_video_that_comes_to_nothing_is_an_error_in_tests_too(
    videos: Videos, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MilNce, "_find", lambda self, rows: Found())
    with pytest.raises(
        VlpipeError, match=r"MilNce breaks row conservation: 1 row\(s\) lost \(first: video0\)"
    ):
        run_map(MilNce(min_time_s=3), videos([[(0.0, 4.0, "a dog runs")]]))


def test_overlapping_clips_come_in_parts_of_bounded_bytes(
    tmp_path: Path, videos: Videos, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of 50 clips has all windows of its video but one or two: 50 times its bytes together."""
    rows = with_windows(videos([[], [], []]), [200, 1, 100])
    times = [
        (f"{n}.mp4", 0.0, length - 0.01 * k) for n, length in ((0, 200.0), (2, 100.0)) for k in range(50)
    ]
    stage = spans(tmp_path, [*times, ("1.mp4", 5.0, 6.0)])
    whole = run_map(stage, rows)
    limit = 5000  # bytes; 12 per window, so 2 clips of the first video, 4 of the third
    monkeypatch.setattr(cut_windows, "PART_BYTES", limit)
    with stage.open() as work:
        assert isinstance(work, PartsWork)
        parts = [*work.parts(rows)]
    assert len(parts) == 25 + 13
    assert max(sum(len(w.feats) * 12 for w in read_windows(p.table["frame_feats"])) for p in parts) <= limit
    assert pa.concat_tables([p.table for p in parts]).equals(whole.table)
    assert [r.id for p in parts for r in p.rejects] == [r.id for r in whole.rejects] == ["video1"]
    assert [dict(p.counts) for p in parts] == [{"clips:no_window": 1}] + [{}] * 37
    monkeypatch.setattr(cut_windows, "PART_BYTES", 1)  # a clip that is larger is alone
    with stage.open() as work:
        assert [p.table.num_rows for p in work.parts(rows)] == [1] * 100


def test_windows_out_of_order_are_a_fault(tmp_path: Path, videos: Videos) -> None:
    rows = with_windows(videos([[], []]), [3, 3])
    column = rows["frame_feats"].to_pylist()
    rows = rows.set_column(
        rows.column_names.index("frame_feats"),
        rows.schema.field("frame_feats"),
        pa.array([column[0], column[1][::-1]], features_type(2)),
    )
    with pytest.raises(RowFault, match=r"^windows_unordered: .*'frame_feats'"):
        run_map(spans(tmp_path, [("0.mp4", 0, 2), ("1.mp4", 0, 2)]), rows)
    assert run_map(spans(tmp_path, [("0.mp4", 0, 2)]), rows.slice(0, 1)).table.num_rows == 1


TOYS = """
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from vlpipe.pipeline.shard import Out, heavy, with_field
from vlpipe.pipeline.stage import MapStage, SourceStage
from vlpipe.stages.features.s3d import features_type
from vlpipe.stages.features.windows import read_windows
from vlpipe.stages.video.rows import VIDEOS


@dataclass(frozen=True, kw_only=True)
class Films(SourceStage):
    def row_schema(self):
        return VIDEOS

    def rows(self):
        cue = {"text": "a dog runs", "words": None, "source": "auto", "lang": "en"}
        yield pa.Table.from_pylist([
            {"id": f"v{n}", "url": f"{n}", "video": f"{n}", "num_bytes": 1, "sha256": "0", "video_id": f"{n}",
             "duration_s": 9.0, "cues": [{**cue, "start_s": s, "end_s": s + 4.0} for s in (0.0, 4.0)]}
            for n in range(6)
        ], VIDEOS)

    @contextmanager
    def open(self):
        yield lambda batch: batch


@dataclass(frozen=True, kw_only=True)
class Encode(MapStage):
    def schema(self, inp):
        return with_field(with_field(inp, heavy("frame_feats", features_type(2))), pa.field("frame_weights", pa.string()))

    @contextmanager
    def open(self):
        def work(rows):
            found = [
                [{"start_s": k, "end_s": k + 1, "feat": np.array([int(v[1:]), k], np.float16)} for k in range(9)]
                if v != "v3" else []
                for v in rows["id"].to_pylist()
            ]
            return rows.append_column("frame_feats", pa.array(found, features_type(2))).append_column(
                "frame_weights", pa.array(["w"] * len(rows))
            )

        yield work


@dataclass(frozen=True, kw_only=True)
class Read(MapStage):
    READS_HEAVY = ("frame_feats",)

    def schema(self, inp):
        return with_field(inp, pa.field("seen", pa.string()))

    @contextmanager
    def open(self):
        def work(rows):
            seen = [str([int(a) for a in w.feats[0]] + [len(w.feats)]) for w in read_windows(rows["frame_feats"])]
            return rows.append_column("seen", pa.array(seen))

        yield work
"""
FLOW = """
name: films
steps:
  films: {use: "film_toys:Films", shard_rows: 4}
  encoded: {use: "film_toys:Encode", from: films}
  clips: {use: "clips.milnce:MilNce", from: encoded, min_time_s: 4, windows: [frame_feats]}
  heard: {use: "clips.text_signals:TextSignals", from: clips}
  read: {use: "film_toys:Read", from: heard}
"""


@pytest.mark.slow
def test_steps_below_read_the_windows_of_the_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "film_toys.py").write_text(TOYS)
    (tmp_path / "films.yaml").write_text(FLOW)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    vlpipe: list[Any] = [sys.executable, "-m", "vlpipe.pipeline.cli.main"]
    for verb in (["run", "films.yaml", "--local", "--root", "root"], ["verify", "root"]):
        done = subprocess.run([*vlpipe, *verb], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    rows = pa.concat_tables([pq.read_table(p) for p in sorted(tmp_path.glob("root/read-*/0*.parquet"))])
    assert [(row["parent"], row["seen"]) for row in rows.to_pylist()] == [
        (f"v{n}", f"[{n}, {first}, 4]") for n in (0, 1, 2, 4, 5) for first in (0, 4)
    ]
    clips = pq.read_schema(next(tmp_path.glob("root/clips-*/000000.parquet")))
    assert "frame_feats" in clips.names  # stored there
    assert "frame_feats" not in pq.read_schema(next(tmp_path.glob("root/heard-*/000000.parquet"))).names
