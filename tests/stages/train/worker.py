"""A training process of its own, for tests that kill it or need two ranks: `worker.py JOBS.pickle`.

KILL_AT=n: SIGKILL in the n-th forward of `fatal:FatalLm`. KILL_IN_SAVE=n: amid the n-th checkpoint.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[3]))  # as a script

from tests.ranks import join, leave
from vlpipe.models import distributed
from vlpipe.stages.train.fit import fit
from vlpipe.stages.train.gradients import accumulate
from vlpipe.stages.train.run import Run, prepare

FATAL = '''
import os, random, signal
import numpy as np
import torch
from vlpipe.models.objectives.lm import Lm

calls = 0

class FatalLm(Lm):
    """LM that dies on demand, and shows what the three global generators give."""

    def forward(self, out):
        global calls
        calls += 1
        if os.environ.get("KILL_AT") == str(calls):
            os.kill(os.getpid(), signal.SIGKILL)
        drawn = random.random() + np.random.rand() + float(torch.rand(()))
        return {**super().forward(out), "drawn": torch.tensor(drawn)}
'''


def gradients(config: dict[str, Any]) -> None:
    """Save what `second_step` returns."""
    run = prepare(config["recipe"], config["inputs"])
    torch.save(second_step(run), Path(config["work"]) / f"gradients{distributed.rank()}.pt")


def second_step(run: Run) -> dict[str, Any]:
    """The gradient of the second step after the exchange, and this rank's part of the values. Weights stay as they are,
    apart from the teacher's.
    """
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in run.net.model.parameters():
            if p.ndim:
                p.add_(0.05 * torch.randn(p.shape, generator=noise))
    with run.loader.batches(0, distributed.rank(), distributed.world_size()) as batches:
        accumulate(run, list(islice(batches, run.recipe.accumulate)))
        run.optimiser.zero_grad()
        values = accumulate(run, list(islice(batches, run.recipe.accumulate)))
    return {
        "grads": {name: p.grad for name, p in run.net.named_parameters() if p.grad is not None},
        "values": values,
        "searches": getattr(run.parallel, "find_unused_parameters", None),
    }


def kill_in_save(number: int) -> None:
    save, saved = torch.save, []

    def half(state: Any, path: str) -> None:
        saved.append(path)
        save(state, path)
        if len(saved) == number:
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = half


if __name__ == "__main__":
    torch.set_num_threads(1)
    if "WORLD_SIZE" in os.environ:
        join()
    if "KILL_IN_SAVE" in os.environ:
        kill_in_save(int(os.environ["KILL_IN_SAVE"]))
    for what, config in pickle.loads(Path(sys.argv[1]).read_bytes()):
        {"fit": fit, "gradients": gradients}[what](config)
    leave()
