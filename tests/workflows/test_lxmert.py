"""The LXMERT workflow: each profile can be planned, and every step of a small run gives what its users read."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from vlpipe.models import folder
from vlpipe.models.systems.regions.lxmert import Lxmert
from vlpipe.pipeline.engine.plan import plan
from vlpipe.pipeline.storage.store import Store
from vlpipe.pipeline.workflow.load import Workflow
from vlpipe.stages.train.train import Train

WORKFLOW = str(Path(__file__).parents[2] / "workflows" / "lxmert.yaml")
SMALL = (
    *("world.num_web=80", "heldout_world.num_web=40", "masked.batch_size=16", "alone_masked.batch_size=16"),
    *(
        f"{name}.{key}"
        for name in ("pretrain", "alone")
        for key in ("steps=4", "warmup_steps=1", "batch_size=8")
    ),
)
FIGURES = {"text", "text/colour", "text/shape", "regions/obj", "regions/attr"}


def given_files(path: Path) -> tuple[str, ...]:
    """Files that the paper's profile reads, so that its steps can be planned; what is in them does not matter."""
    (path / "detector").mkdir()
    save_file({"any": torch.zeros(1)}, path / "detector" / "model.safetensors")
    for name in ("pairs.parquet", "heldout.parquet"):
        pq.write_table(pa.table({"url": ["http://demo.test/a.jpg"], "text": ["a text"]}), path / name)
    return (
        f"images.list={path / 'pairs.parquet'}",
        f"heldout_images.list={path / 'heldout.parquet'}",
        *(f"{name}.detector={path / 'detector'}" for name in ("regions", "heldout")),
    )


@pytest.mark.parametrize("profile", [None, "demo", "paper"])
def test_every_profile_can_be_planned(profile: str | None, tmp_path: Path) -> None:
    sets = given_files(tmp_path) if profile == "paper" else ()
    workflow = Workflow.load(WORKFLOW, profile=profile, sets=sets, root=str(tmp_path / "root"))
    steps = {step.name: step for step in workflow.steps}
    assert {"pretrain", "masked"} <= set(steps)
    for step in workflow.steps:
        assert step.stage.preflight() == [], step.name
    trained = steps["pretrain"].stage
    assert isinstance(trained, Train)
    assert [name for _, name, _ in trained.objective_specs()] == ["masked"] * 5


@pytest.mark.slow
def test_a_small_run(tmp_path: Path) -> None:
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
    steps = {s.name: s for s in plan(Workflow.load(WORKFLOW, sets=SMALL, root=str(root)), Store(str(root)))}
    assert [name for name, one in steps.items() if not one.is_done] == []
    for name in ("masked", "alone_masked"):
        rows = pq.read_table(root / steps[name].folder / "000000.parquet").to_pylist()
        assert {row["name"] for row in rows} == {
            f"{f}/{k}" for f in FIGURES for k in ("true", "shuffled", "prior")
        }
        values = {row["name"]: row["value"] for row in rows if row["num_rows"]}
        assert all(0 <= value <= 1 for value in values.values())
        if name == "alone_masked":  # it cannot see the partner, so a wrong one changes nothing
            for figure in FIGURES:
                assert values.get(f"{figure}/true") == values.get(f"{figure}/shuffled")
    assert isinstance(folder.load(root / steps["pretrain"].folder / "artifacts"), Lxmert)
