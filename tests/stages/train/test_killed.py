"""A training run as a person starts it, its trainer or its driver killed amid it: the same files as undisturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.engine.locking.lock import holder_run, processes_of
from vlpipe.pipeline.storage.store import Store
from vlpipe.stages.common.row import IMAGE_FIELDS, LISTED

HERE = Path(__file__).parent
WORKFLOW = """
name: killed
steps:
  squares: {{use: "gated:Rows", file: "{folder}/rows.parquet", shard_rows: 20}}
  train:
    use: "train.train:Train"
    from: squares
    model: {{use: "blip:Blip", image_size: 16, patch_size: 8, vision_width: 32, vision_layers: 1, vision_heads: 2,
             text_width: 32, text_layers: 1, text_heads: 2, max_text_length: 16, embed_dim: 16, position: sincos}}
    tokenizer: "{folder}/vocabulary"
    objectives: [{{use: "itc:Itc", queue_size: 40}}, "itm:Itm", "gated:GatedLm"]
    teachers: {{ema: {{momentum: 0.995}}}}
    streams: {{text: {{max_length: 12}}}}
    batch_size: 16
    steps: 10
    lr: 1.0e-3
    log_every: 4
    checkpoint_every: 3
    loader_threads: 1
"""


@pytest.fixture(scope="module")
def workflow(tmp_path_factory: pytest.TempPathFactory, make_rows: Callable[[], list[dict[str, Any]]]) -> Path:
    folder, rows = tmp_path_factory.mktemp("killed"), make_rows()
    pq.write_table(pa.Table.from_pylist(rows, pa.schema([*LISTED, *IMAGE_FIELDS])), folder / "rows.parquet")
    Tokenizer.train([row["texts"][0]["text"] for row in rows], vocab_size=100).save(folder / "vocabulary")
    (folder / "w.yaml").write_text(WORKFLOW.format(folder=folder))
    return folder / "w.yaml"


@pytest.fixture(scope="module")
def undisturbed(workflow: Path) -> dict[str, Any]:
    """The files of a run that nobody kills."""
    root = workflow.with_name("undisturbed")
    end_well(start(workflow, root, "--local"))
    return promised(root)


def start(workflow: Path, root: Path, *more: str, gate: Path | None = None) -> subprocess.Popen[bytes]:
    """`vlpipe run` in a process of its own; with a gate, training waits for it after 5 of 10 steps."""
    path = os.pathsep.join(p for p in (str(HERE), os.environ.get("PYTHONPATH", "")) if p)
    env = {**os.environ, "PYTHONPATH": path} | ({"GATE": str(gate)} if gate else {})
    command = [
        sys.executable,
        "-m",
        "vlpipe.pipeline.cli.main",
        "run",
        str(workflow),
        "--root",
        str(root),
        *more,
    ]
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def end_well(process: subprocess.Popen[bytes]) -> None:
    _, said = process.communicate(timeout=500)
    assert process.returncode == 0, said.decode()


def wait_until(there: Callable[[], Any], process: subprocess.Popen[bytes]) -> None:
    while not there():
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        time.sleep(0.02)


def run_id(root: Path) -> str:
    return holder_run(Store(str(root)))


def promised(root: Path) -> dict[str, Any]:
    """Every file but logs; of receipts what identifies. `_shards.parquet` holds the receipts once more."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        rel = path.relative_to(root).as_posix()
        if "_receipts/" in rel:
            receipt = json.loads(path.read_bytes())
            found[rel] = {k: v for k, v in receipt.items() if k not in ("run", "sha256")}  # both say when
        elif "_log/" not in rel and not rel.startswith(("_cache/", "_lock/", "_events/")):
            found[rel] = "" if rel.endswith("/_shards.parquet") else path.read_bytes()
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_amid_training_it_leaves_the_same_files_and_no_process(
    workflow: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    """First the driver is killed; then, amid the run that goes on, the trainer."""
    root, gate = tmp_path / "killed", tmp_path / "gate"
    first = start(workflow, root, gate=gate)
    trainer, run = at_the_gate(first, root, gate)
    assert [p.name for p in root.glob("train-*/work/*/checkpoints/*")] == ["000000003.pt"]
    assert trainer in processes_of(run)
    assert trainer != first.pid
    first.kill()
    first.wait()
    second = start(workflow, root, gate=gate)  # its trainer waits too, after 5 of the 7 steps that are left
    trainer, next_run = at_the_gate(second, root, gate)
    assert not processes_of(run)
    gate.touch()
    os.kill(trainer, signal.SIGKILL)
    end_well(second)
    wait_until_gone([run, next_run])
    assert promised(root) == undisturbed
    (losses,) = root.glob("train-*/000000.parquet")
    assert set(pq.read_table(losses)["step"].to_pylist()) == {4, 8, 10}


def at_the_gate(process: subprocess.Popen[bytes], root: Path, gate: Path) -> tuple[int, str]:
    """Waits until the trainer waits; returns its process id, and the run's."""
    told = gate.with_suffix(".pid")
    wait_until(told.exists, process)
    trainer = int(told.read_text())
    told.unlink()
    return trainer, run_id(root)


def wait_until_gone(runs: list[str]) -> None:
    deadline = time.monotonic() + 30
    while any(processes_of(run) for run in runs):
        assert time.monotonic() < deadline, "processes of a run outlived it"
        time.sleep(0.05)
