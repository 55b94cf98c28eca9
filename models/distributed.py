"""Collectives that also answer when no process group exists: one process is a world of one.

The ranks are those that have different rows; processes that share the work on the same rows count as one (`use`).
Losses built with these have the same value and gradient on W ranks of B rows as on one rank of W x B rows,
once the gradients are averaged over ranks (as DistributedDataParallel does).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def _active() -> bool:
    return dist.is_available() and dist.is_initialized()


_group: dist.ProcessGroup | None = None  # None: all processes


def use(group: dist.ProcessGroup | None) -> None:
    """Sets the processes that have different rows, this one among them; None: all of them."""
    global _group
    _group = group


def rank() -> int:
    return dist.get_rank(_group) if _active() else 0


def world_size() -> int:
    return dist.get_world_size(_group) if _active() else 1


def is_first() -> bool:
    """Returns whether this process writes for all."""
    return not _active() or dist.get_rank() == 0


@torch.no_grad()
def gather(x: Tensor) -> Tensor:
    """Concatenate `x` (B, ...) of all ranks in rank order -> (W x B, ...); no gradient. B must be equal on
    all ranks.
    """
    if world_size() == 1:
        return x.detach()
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x.detach().contiguous(), group=_group)
    return torch.cat(parts)


class _GatherWithGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.num_rows = len(x)
        return gather(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].contiguous()
        dist.all_reduce(total, group=_group)  # every rank's loss may have used our rows
        return total[rank() * ctx.num_rows :][: ctx.num_rows]


def gather_with_grad(x: Tensor) -> Tensor:
    """As `gather`, but each rank's rows receive the gradients that all ranks have for them."""
    if world_size() == 1:
        return x
    out: Tensor = _GatherWithGrad.apply(x)
    return out


def gather_padded(x: Tensor) -> Tensor:
    """As `gather`, for `x` (B, L) whose L may differ between ranks: shorter ones are padded with zeros on the right."""
    if world_size() == 1:
        return x.detach()
    longest = torch.tensor(x.shape[1], device=x.device)
    dist.all_reduce(longest, dist.ReduceOp.MAX, group=_group)
    wide = x.new_zeros(len(x), int(longest))
    wide[:, : x.shape[1]] = x
    return gather(wide)


def total(x: Tensor) -> Tensor:
    """Returns the sum of `x` over all ranks; no gradient."""
    everywhere = x.detach().clone()
    if world_size() > 1:
        dist.all_reduce(everywhere, group=_group)
    return everywhere
