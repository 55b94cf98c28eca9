"""The detector workflow, small: every step runs, and what it leaves is what region systems read."""

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from vlpipe.pipeline.engine.plan import plan
from vlpipe.pipeline.storage.store import Store
from vlpipe.pipeline.workflow.load import Workflow

WORKFLOW = str(Path(__file__).parents[2] / "workflows" / "detector_demo.yaml")
SMALL = (
    *("world.num_web=40", "heldout_world.num_web=12"),
    *("detector.steps=3", "detector.warmup_steps=1", "detector.batch_size=4", "detector.log_every=1"),
)


@pytest.mark.slow
def test_a_detector_is_trained_scored_and_used(tmp_path: Path) -> None:
    root = tmp_path / "root"
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
    command += [part for one in SMALL for part in ("--set", one)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

    steps = {
        one.name: one for one in plan(Workflow.load(WORKFLOW, sets=SMALL, root=str(root)), Store(str(root)))
    }
    assert [name for name, one in steps.items() if not one.is_done] == []
    folders = {name: root / one.folder for name, one in steps.items()}
    assert sorted(p.name for p in (folders["detector"] / "artifacts").iterdir()) == [
        "attributes_vocab.txt",
        "config.json",
        "model.safetensors",
        "objects_vocab.txt",
    ]
    scores = pq.read_table(folders["scores"] / "000000.parquet")["name"].to_pylist()
    assert [name for name in scores if "/" not in name] == ["ap", "ap50", "recall50", "attribute_right"]
    (regions,) = folders["regions"].glob("0*.parquet")
    rows = pq.read_table(regions).to_pylist()
    assert len(rows) == 12
    shapes = (folders["detector"] / "artifacts" / "objects_vocab.txt").read_text().split()
    for row in rows:
        assert 4 <= len(row["regions"]) <= 36
        assert {len(one["feat"]) for one in row["regions"]} == {512}
        assert set(row["region_tags"]) <= set(shapes)
        assert {one["label"] for one in row["objects"]} <= {"circle", "square", "triangle", "cross", "ring"}
