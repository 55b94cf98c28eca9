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
from vlpipe.stages.train.run import Run, prepare
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


@pytest.fixture
def second_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[Run], dict[str, Any]]:
    """That of `worker.py`."""
    monkeypatch.syspath_prepend(str(HERE))
    import worker

    return worker.second_step


@pytest.mark.slow
def test_two_ranks(
    tmp_path: Path,
    squares: Dataset,
    make_rows: Callable[[], list[dict[str, Any]]],
    recipe_of: Make,
    second_step: Callable[[Run], dict[str, Any]],
) -> None:
    """ITC and LM: the gradient of one process with the whole batch, with 1 or 2 micro-batches per rank. All objectives:
    they train, queues are shared.

    A step of the first is the whole set of 48, so that all see the same rows; texts of 1 to 8 words make the
    ranks' token counts unequal, and in the second step the queue is full.
    """
    rows = make_rows()
    for k, row in enumerate(rows):
        row["texts"][0]["text"] = " ".join(["red", "blue", "top"][k % 3 :] * 3)[: 3 + 4 * (k % 8)]
    uneven = dataset(tmp_path / "uneven", pa.Table.from_pylist(rows, squares.schema))
    itc = {"use": "itc:Itc", "queue_size": 40, "alpha_ramp_epochs": 0}
    exact = {"batch_size": 48, "objectives": [itc, "lm:Lm"], "model": {"dropout": 0.0}}
    everything = recipe_of(steps=3, num_workers=2, accumulate=2, batch_size=16, checkpoint_every=2)
    jobs = [("gradients", recipe_of(num_workers=2, accumulate=k, **exact), uneven) for k in (1, 2)]
    *gradients, fitted = in_processes(tmp_path, 2, [*jobs, ("fit", everything, squares)])

    one = second_step(prepare(recipe_of(**exact), [uneven]))
    for folder in gradients:
        ranks = [torch.load(folder / f"gradients{rank}.pt") for rank in range(2)]
        for rank in ranks:
            assert rank["grads"].keys() == one["grads"].keys()
            for name, grad in one["grads"].items():
                torch.testing.assert_close(rank["grads"][name], grad, rtol=1e-4, atol=1e-7)
        for name in ("itc", "lm", "loss", "temp"):
            mean = sum(float(rank["values"][name]) for rank in ranks) / 2
            assert mean == pytest.approx(float(one["values"][name]), rel=1e-5)
        assert ranks[0]["values"]["lm"] != ranks[1]["values"]["lm"]
    assert float(one["grads"]["model.temp"]) != 0

    assert (fitted / "result/model.safetensors").is_file()
    state = torch.load(fitted / "checkpoints/000000003.pt")
    assert int(state["net"]["objectives.0.queue.num_pushed"]) == 3 * 16
    assert {name for _, name, _ in state["rows"]} >= {"itc", "itm", "itm_accuracy", "lm", "loss"}
    assert len((fitted / "progress.log").read_text().splitlines()) == 3
