"""A net whose weights, gradients and optimiser state are divided among workers, by torch's FSDP2 (`fully_shard`).

Stages of ZeRO (Rajbhandari et al. 2020, https://arxiv.org/abs/1910.02054) differ in what is whole within a step: 1 keeps
weights and gradients whole until the last micro-batch, 2 keeps weights, 3 gathers the weights of one layer at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from vlpipe.models.parallel.layers import other_passes, units_of


class Sharded:
    """Calls a net that it has divided, in place, among workers; mesh: ("shard",), or ("data", "shard") with replicas.

    Layers (see `units_of`) are gathered one by one, everything else with the net. Scalars and the parameters in `whole`
    stay whole on all workers. dtype: of the gathered weights and the exchanged gradients; None: as they are. In stage 2 a
    worker's part of the gradient is kept in it, too, until `finish`.
    """

    def __init__(
        self,
        net: Any,
        mesh: DeviceMesh,
        *,
        stage: int = 3,
        dtype: torch.dtype | None = None,
        whole: Iterable[nn.Parameter] = (),
    ) -> None:
        self.net, self.stage, self.call = net, stage, net
        named = {p for p in net.parameters() if p.numel() == 1} | set(whole)
        self.whole = [p for p in net.parameters() if p in named]  # the same order on all ranks
        self.group = (mesh if mesh.ndim == 1 else mesh._flatten("rows")).get_group()
        how: dict[str, Any] = {
            "mesh": mesh,
            "mp_policy": MixedPrecisionPolicy(dtype, cast_forward_inputs=False),
            "ignored_params": set(self.whole),
            "reshard_after_forward": stage == 3,
        }
        for layer in reversed(list(units_of(net))):  # the innermost first; of teachers, too
            if any(p not in named for p in layer.parameters()):
                fully_shard(layer, **how)
                _gather_in_all_passes(layer)
        fully_shard(net, **how)
        self.kept_in_half: list[Tensor] = []
        if stage == 2 and dtype is not None:
            self.kept_in_half = [p for p in net.parameters() if p not in named and p.requires_grad]
            halve = partial(_cast_gradient, dtype=dtype)
            for p in self.kept_in_half:
                # FSDP2 makes them in the type of the weights' parts, 4 bytes, layer by layer
                p.grad_dtype = None  # any
                p.register_post_accumulate_grad_hook(halve)
        for p in self.whole:
            p.data = p.data.to(mesh.device_type)

    def __call__(self, *args: Any) -> Any:
        return self.call(*args)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Context manager of a micro-batch that is not the last one of its step."""
        self._end(last=False)
        try:
            yield
        finally:
            self._end(last=True)

    def _end(self, *, last: bool) -> None:
        if self.stage == 1:
            self.net.set_requires_gradient_sync(last)
        if self.stage < 3:
            self.net.set_reshard_after_backward(last)

    def finish(self) -> None:
        """Averages the gradients of whole parameters over workers, and gives the others the type of their weights; called
        after the last backward pass of a step.

        All workers must have a gradient of the same ones.
        """
        for p in self.kept_in_half:
            if p.grad is not None:
                _cast_gradient(p, p.dtype)
        for p in self.whole:
            if p.grad is not None:
                dist.all_reduce(p.grad, group=self.group)
                p.grad /= dist.get_world_size(self.group)


def _cast_gradient(p: Tensor, dtype: torch.dtype) -> None:
    p.grad = _grad(p).to(dtype)


def _gather_in_all_passes(layer: Any) -> None:
    """Lets the public methods of a divided layer gather its weights as `forward` does, unless one calls another."""
    names = other_passes(layer)
    inside = False

    def outermost(gathering: Callable[..., Any], plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal inside
        before, inside = inside, True
        try:
            return (plain if before else gathering)(*args, **kwargs)
        finally:
            inside = before

    if names:
        layer.forward = partial(outermost, layer.forward, layer.forward)
    for name in names:
        plain = getattr(layer, name)
        register_fsdp_forward_method(layer, name)
        setattr(layer, name, partial(outermost, getattr(layer, name), plain))


def kinds(params: Iterable[Tensor]) -> dict[object, list[Tensor]]:
    """Returns the tensors in lists of those that one operation can take together: plain ones, and those of each mesh."""
    found: dict[object, list[Tensor]] = {}
    for p in params:
        found.setdefault(p.device_mesh if isinstance(p, DTensor) else None, []).append(p)
    return found


def clip_gradients(params: Collection[nn.Parameter], most: float = math.inf) -> Tensor:
    """Clips gradients, some of which may be divided, to an L2 norm of `most` over all; returns the norm before, a scalar."""
    lists = kinds(p for p in params if p.grad is not None)
    norms = [_whole(torch.nn.utils.get_total_norm([_grad(p) for p in own])) for own in lists.values()]
    total = torch.stack([norm.float() for norm in norms]).square().sum().sqrt()
    for own in lists.values():
        torch.nn.utils.clip_grads_with_norm_(own, most, total)
    return total


def _grad(p: Tensor) -> Tensor:
    assert p.grad is not None
    return p.grad


def _whole(x: Tensor) -> Tensor:
    return x.full_tensor() if isinstance(x, DTensor) else x


def placed(value: Tensor, like: Tensor) -> Tensor:
    """Returns a whole tensor, equal on all workers, on the device of `like`; of one that is divided like it, this part."""
    value = value.to(like.device)
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    (chunk,) = like.__create_chunk_list__()
    where = tuple(slice(begin, begin + size) for begin, size in zip(chunk.offsets, chunk.sizes, strict=True))
    return DTensor.from_local(
        value[where].contiguous(),
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def gathered(state: Any) -> dict[str, Tensor]:
    """Returns a `state_dict()` with whole tensors; all workers must call this together."""
    return {name: _whole(value.detach()) for name, value in state.items()}
