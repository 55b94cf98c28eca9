"""Two processes over gloo against one process with the whole batch."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from vlpipe.pipeline.stage import Dataset
from vlpipe.pipeline.testing import dataset
from vlpipe.stages.train.gradients import accumulate
from vlpipe.stages.train.run import prepare
from vlpipe.stages.train.train import Train

HERE = Path(__file__).parent
Make = Callable[..., Train]


def in_processes(folder: Path, num: int, jobs: Sequence[tuple[str, Train, Dataset]]) -> list[Path]:
    """Run the jobs in `num` ranks of `worker.py`; returns their folders of work."""
    works = [folder / f"work{k}" for k in range(len(jobs))]
    for work in works:
        work.mkdir()
    configs = [
        (what, {"recipe": recipe, "inputs": (data,), "work": str(work)})
        for (what, recipe, data), work in zip(jobs, works, strict=True)
    ]
    (folder / "jobs").write_bytes(pickle.dumps(configs))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(num)}
    running = [
        subprocess.Popen(
            [sys.executable, HERE / "worker.py", folder / "jobs"],
            env={**os.environ, **group, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(num)
    ]
    assert [process.wait(timeout=120) for process in running] == [0] * num
    return works


def test_two_ranks(
    tmp_path: Path, squares: Dataset, make_rows: Callable[[], list[dict[str, Any]]], recipe_of: Make
) -> None:
    """LM: the gradient of one process with the double batch. All objectives: they train, queues are shared.

    A step of the first is the whole set of 48, so that both see the same rows; texts of 1 to 8 words make the
    ranks' token counts unequal.
    """
    rows = make_rows()
    for k, row in enumerate(rows):
        row["texts"][0]["text"] = " ".join(["red"] * (1 + k % 8))
    uneven = dataset(tmp_path / "uneven", pa.Table.from_pylist(rows, squares.schema))
    lm = {"batch_size": 48, "objectives": ["lm:Lm"], "model": {"dropout": 0.0}}
    everything = recipe_of(steps=3, num_workers=2, accumulate=2, batch_size=16, checkpoint_every=2)
    jobs = [("gradients", recipe_of(num_workers=2, **lm), uneven), ("fit", everything, squares)]
    gradients, fitted = in_processes(tmp_path, 2, jobs)

    run = prepare(recipe_of(**lm), [uneven])
    with run.loader.batches(0) as batches:
        values = accumulate(run, [next(batches)])
    ranks = [torch.load(gradients / f"gradients{rank}.pt") for rank in range(2)]
    for name, p in run.net.named_parameters():
        for rank in ranks:
            torch.testing.assert_close(rank["grads"].get(name), p.grad, rtol=1e-4, atol=1e-7)
    assert sum(float(rank["values"]["lm"]) for rank in ranks) / 2 == pytest.approx(
        float(values["lm"]), rel=1e-5
    )
    assert ranks[0]["values"]["lm"] != ranks[1]["values"]["lm"]

    assert (fitted / "result/model.safetensors").is_file()
    state = torch.load(fitted / "checkpoints/000000003.pt")
    assert int(state["net"]["objectives.0.queue.num_pushed"]) == 3 * 16
    assert {name for _, name, _ in state["rows"]} >= {"itc", "itm", "itm_accuracy", "lm", "loss"}
    assert len((fitted / "progress.log").read_text().splitlines()) == 3
