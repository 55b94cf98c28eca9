"""A trial pass over a few samples before training, which leaves the net as it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from vlpipe.models.interface.batch import Batch
from vlpipe.models.interface.objective import Term

FEW = 8  # samples of a trial: a contrast of each with all others is a small part of a step


def losses_and_gradient(
    net: Any, batch: Batch, dtype: torch.dtype = torch.float32, through: Any = None
) -> None:
    """Computes the sum of the losses of `batch` and its gradient.

    net: maps a batch to name -> Term of its losses; `net.losses` has the names of those that are optimised. through: a
    module around `net` that is called in its place. dtype: of the forward pass under autocast; float32 for none.
    """
    # a GPU has no autocast to float32, disabled or not
    kind = torch.bfloat16 if dtype == torch.float32 else dtype
    with torch.autocast(batch.same.device.type, kind, enabled=dtype != torch.float32):
        values = (through or net)(batch)
    terms = [values[name] for name in net.losses if name in values]
    totals = [term.total if isinstance(term, Term) else term for term in terms]
    loss: Tensor = torch.stack([t.float() for t in totals]).sum()
    torch.autograd.backward(loss)


@contextmanager
def unchanged(net: Any) -> Iterator[None]:
    """Within this context `net` is in evaluation mode, without gradients.

    Afterwards its mode and gradients, and the random generators, are as before.
    """
    params = list(net.parameters())
    devices = {p.device.index for p in params if p.device.type == "cuda"}
    training, gradients = net.training, [p.grad for p in params]
    net.eval().zero_grad(set_to_none=True)
    try:
        with torch.random.fork_rng(devices=sorted(devices)):
            yield
    finally:
        net.train(training)
        for parameter, gradient in zip(params, gradients, strict=True):
            parameter.grad = gradient
