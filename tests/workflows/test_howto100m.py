"""From HowTo100M's files to scored clips, small: made videos, random S3D-G weights, thresholds as they are."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from vlpipe.models.video.s3dg import S3dG
from vlpipe.pipeline.engine.plan import plan
from vlpipe.pipeline.engine.planned import PlannedStep
from vlpipe.pipeline.storage.store import Store
from vlpipe.pipeline.workflow.load import Workflow

WORKFLOW = str(Path(__file__).parents[2] / "workflows" / "howto100m.yaml")
WORDS = ["cut", "the", "onion", "add", "salt", "stir", "it"]
SAID = {  # video -> (start, end, text)
    "-abcdefghij": [
        (0.5, 3, "cut the onion"),
        (3, 5, "add the salt"),
        (6, 9, "[Music]"),
        (9, 11.5, "stir it"),
    ],
    "bbbbbbbbbbb": [(1, 3, "add add add add add add"), (4, 9, "cut it")],
    "still______": [(1, 9, "stir the onion")],
    "gone_______": [(1, 9, "stir the onion")],
    "unlisted___": [(1, 9, "stir the onion")],
    "silent_____": [],
}


def make_video(path: Path, seed: int, moving: bool) -> None:
    """12 s of noise that drifts, 48 x 48."""
    rng = np.random.default_rng(seed)
    wide = np.kron(rng.integers(0, 256, (12, 60, 3)), np.ones((4, 4, 1))).astype(np.uint8)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=10, options={"crf": "20"})
        stream.width = stream.height = 48
        stream.pix_fmt = "yuv420p"
        for k in range(120):
            left = k if moving else 0
            out.mux(
                stream.encode(
                    av.VideoFrame.from_ndarray(np.ascontiguousarray(wide[:, left : left + 48]), "rgb24")
                )
            )
        out.mux(stream.encode(None))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("howto100m")
    (folder / "videos").mkdir()
    for seed, name in enumerate(("-abcdefghij", "bbbbbbbbbbb", "still______", "silent_____")):
        make_video(folder / "videos" / f"{name}.mp4", seed, moving=name != "still______")
    captions = {
        name: {"start": [c[0] for c in cues], "end": [c[1] for c in cues], "text": [c[2] for c in cues]}
        for name, cues in SAID.items()
    }
    (folder / "raw_caption.json").write_text(json.dumps(captions))
    with open(folder / "HowTo100M_v1.csv", "w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["video_id", "category_1", "category_2", "rank", "task_id"])
        lines.writerows([name, "Food", "Recipes", 1, 7] for name in SAID if name != "unlisted___")
    (folder / "task_ids.csv").write_text("7\tCook Onions\n")
    torch.manual_seed(0)
    torch.save(S3dG(num_words=len(WORDS)).state_dict(), folder / "s3d_howto100m.pth")
    np.save(folder / "s3d_dict.npy", np.array(WORDS))
    return folder


def settings(inputs: Path) -> tuple[str, ...]:
    """The workflow's files in `inputs`, and small windows."""
    files = {
        "videos.list": "HowTo100M_v1.csv",
        "videos.captions": "raw_caption.json",
        "videos.tasks": "task_ids.csv",
        **dict.fromkeys(("videos.videos", "seen.videos", "features.videos"), "videos"),
        **dict.fromkeys(("features.weights", "scored.model"), "s3d_howto100m.pth"),
        "scored.words": "s3d_dict.npy",
    }
    small = ("features.windows.frames=4", "features.windows.stride=20", "features.windows.side=32")
    return (*(f"{key}={inputs / name}" for key, name in files.items()), *small)


@pytest.mark.slow
def test_clips_are_paired_judged_and_scored(inputs: Path, tmp_path: Path) -> None:
    root, sets = tmp_path / "root", settings(inputs)
    steps = run(root, sets)

    def rejects(step: str) -> dict[str, int]:
        manifest = steps[step].manifest
        assert manifest is not None
        return dict(manifest.rejects)

    assert rejects("videos") == {"fault:no_file": 1, "fault:not_listed": 1, "fault:no_cues": 1}
    assert rejects("clips") == {}
    assert rejects("said") == {"filtered:no_text_kept": 2}  # [Music], and the loop
    assert rejects("shown") == {"filtered:slide": 1}
    assert rejects("features") == rejects("scored") == {}
    assert rejects("aligned") == {"filtered:not_in_top": 2}  # of 4

    rows = rows_of(root, steps["scored"])
    assert Counter(row["video_id"] for row in rows) == {"-abcdefghij": 3, "bbbbbbbbbbb": 1}
    for row in rows:
        assert 2 <= row["clip_s"] <= 5
        assert row["align_weights"] == row["s3d_weights"].partition(":")[0]
        assert row["s3d_weights"].endswith(":unit")
        assert len(row["align_score"]) == 1
        assert len(row["candidate_scores"]) == len(row["candidates"])
        own = [c["text"] for c in row["candidates"]].index(row["texts"][0]["text"])
        assert row["candidate_scores"][own] == row["align_score"][0]
    scores = sorted(row["align_score"][0] for row in rows)
    assert sorted(row["align_score"][0] for row in rows_of(root, steps["aligned"])) == scores[2:]


@pytest.mark.slow
def test_another_rule_is_another_use(inputs: Path, tmp_path: Path) -> None:
    for use in ("howto100m:HowTo100M", "univl:UniVL", "videoclip:VideoClip", "videobert:VideoBert"):
        here = '"clips.milnce:MilNce", from: videos, min_time_s: 5, num_candidates: 5'
        text = Path(WORKFLOW).read_text()
        assert here in text
        (tmp_path / "w.yaml").write_text(text.replace(here, f'"clips.{use}", from: videos'))
        workflow = Workflow.load(str(tmp_path / "w.yaml"), sets=settings(inputs), root=str(tmp_path / "root"))
        last = plan(workflow, Store(str(tmp_path / "root")))[-1]
        assert (last.name, "align_score" in last.schema_out.names) == ("aligned", True)


@pytest.mark.slow
def test_real_clips_go_from_file_to_filtered_rows(inputs: Path, tmp_path: Path) -> None:
    real = Path(os.environ.get("VLPIPE_DATA", Path(__file__).parents[3] / "shared" / "data")) / "video_clips"
    if not real.is_dir():
        pytest.skip(f"real data not found: {real} (set VLPIPE_DATA)")
    about = [json.loads(line) for line in (real / "captions.jsonl").read_text().splitlines()]
    about = [one for one in about if (real / one["file"]).exists()][:6]
    (tmp_path / "captions").mkdir()
    for one in about:  # as MIL-NCE's files are: a list of paths, a file of captions for each
        caption = f'start,end,text\n0.0,60.0,"{one["caption"]}"\n'
        (tmp_path / "captions" / f"{Path(one['file']).name.split('.')[0]}.csv").write_text(caption)
    lines = [Path(one["file"]).name for one in about]
    (tmp_path / "list.csv").write_text("\n".join(["video_path", *lines]) + "\n")
    mine = (f"videos.list={tmp_path / 'list.csv'}", f"videos.captions={tmp_path / 'captions'}")
    mine += tuple(f"{step}.videos={real / 'clips'}" for step in ("videos", "seen", "features"))
    sets = (*settings(inputs), *mine, "clips.min_time_s=2")
    steps = run(tmp_path / "root", sets)
    rows = rows_of(tmp_path / "root", steps["scored"])
    shown = rows_of(tmp_path / "root", steps["seen"])
    assert len(shown) == len(about)
    assert all(len(row["frame_hash"]) == 16 and row["black_ratio"] == 0 for row in shown)
    still = {row["video_id"] for row in shown if row["static_ratio"] > 0.9}
    assert {row["video_id"] for row in rows} == {row["video_id"] for row in shown} - still
    assert all(np.isfinite(row["align_score"][0]) for row in rows)


def run(root: Path, sets: tuple[str, ...]) -> dict[str, PlannedStep]:
    command = [
        sys.executable,
        "-m",
        "vlpipe.pipeline.cli.main",
        "run",
        WORKFLOW,
        "--local",
        "--root",
        str(root),
    ]
    command += [part for one in sets for part in ("--set", one)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return {
        one.name: one for one in plan(Workflow.load(WORKFLOW, sets=sets, root=str(root)), Store(str(root)))
    }


def rows_of(root: Path, step: PlannedStep) -> list[dict[str, Any]]:
    files = sorted((root / step.folder).glob("0*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]
