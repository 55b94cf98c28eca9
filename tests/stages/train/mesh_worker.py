"""One of several processes that train the same recipes on a mesh: `mesh_worker.py JOBS.pickle FOLDER`."""

from __future__ import annotations

import pickle
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from tests.ranks import join, leave
from vlpipe.models import distributed
from vlpipe.models.parallel.sharded import gathered
from vlpipe.models.parallel.tensor import joined
from vlpipe.stages.train import fit
from vlpipe.stages.train.run import prepare


def trained(recipe: Any, data: Any, num_steps: int = 3) -> dict[str, Any]:
    """Losses of each step, their mean over ranks; gradients of the last one before clipping; and the state after it."""
    run = prepare(recipe, [data])
    whole = gathered if run.pipeline is None else run.pipeline.gathered
    grads: dict[str, torch.Tensor] = {}
    clip = fit.clip

    def seen(of: Any) -> torch.Tensor:
        found = {name: p.grad for name, p in run.net.named_parameters() if p.grad is not None}
        if run.pipeline is not None:  # the gradients of other parts
            found |= {name: p.data for name, p in run.net.named_parameters() if p.is_meta and p.requires_grad}
        grads.clear()
        grads.update({name: grad.clone() for name, grad in whole(found).items()})
        return clip(of)

    fit.clip = seen
    losses = []
    try:
        with run.loader.batches(0, distributed.rank(), distributed.world_size()) as batches:
            for _ in range(num_steps):
                fit.train_step(run, list(islice(batches, recipe.accumulate)))
                losses.append(fit.log(run))
    finally:
        fit.clip = clip
        distributed.use(None)
    state = joined(run.net, whole(run.net.state_dict()))
    return {"losses": losses, "grads": joined(run.net, grads), "state": state}


if __name__ == "__main__":
    rank = join()
    jobs = pickle.loads(Path(sys.argv[1]).read_bytes())
    found = {name: trained(recipe, data) for name, (recipe, data) in jobs.items()}
    if rank == 0:
        torch.save(found, Path(sys.argv[2]) / "found.pt")
    leave()
