"""The demo of videos on a tiny world: every step runs, every film is somewhere, the figures are there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from vlpipe.pipeline.engine.plan import plan
from vlpipe.pipeline.engine.planned import PlannedStep
from vlpipe.pipeline.storage.store import Store
from vlpipe.pipeline.workflow.load import Workflow

WORKFLOW = str(Path(__file__).parents[2] / "workflows" / "video_demo.yaml")
TINY = (
    *(
        "world.num_train=6",
        "world.num_eval=6",
        "encoder.steps=3",
        "encoder.warmup_steps=1",
        "encoder.batch_size=16",
    ),
    *("encoder.torch_threads=1", "encoder.resources.cpus=1", "encoder.model.vision_layers=1"),
)


def rows_of(root: Path, step: PlannedStep) -> list[dict[str, Any]]:
    files = sorted((root / step.folder).glob("0*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


@pytest.mark.slow
def test_the_demo_runs(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "vlpipe.pipeline.cli.main",
        "run",
        WORKFLOW,
        "--local",
        "--root",
        str(tmp_path),
    ]
    command += [part for one in TINY for part in ("--set", one)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    workflow = Workflow.load(WORKFLOW, sets=TINY, root=str(tmp_path))
    steps = {one.name: one for one in plan(workflow, Store(str(tmp_path)))}

    videos, retimed = (rows_of(tmp_path, steps[name]) for name in ("videos", "retimed"))
    assert [row["id"] for row in retimed] == [row["id"] for row in videos]
    for old, new in zip(videos, retimed, strict=True):
        assert len(set(new["cue_shift_s"])) == 1  # together
        shift_s = new["cue_shift_s"][0]
        times = [(c["start_s"] + shift_s, c["end_s"] + shift_s, c["text"]) for c in old["cues"]]
        assert times == [(c["start_s"], c["end_s"], c["text"]) for c in new["cues"]]
    figures = {row["name"]: row["value"] for row in rows_of(tmp_path, steps["truth"])}
    assert 0 <= figures["right_place/after"] <= 1
    assert figures["lag_s/before"] > 0
    scored, aligned = (rows_of(tmp_path, steps[name]) for name in ("scored", "aligned"))
    assert {row["parent"] for row in scored} <= {row["id"] for row in videos}
    assert len(aligned) == int(0.7 * len(scored))
    assert (
        min(row["align_score"][0] for row in aligned)
        >= sorted(row["align_score"][0] for row in scored)[-len(aligned)]
    )
