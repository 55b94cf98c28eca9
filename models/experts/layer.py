"""A feed-forward part made of experts, in place of the one of a transformer layer; experts may be spread over ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.experts.routers import ROUTERS
from vlpipe.models.experts.routing import Routing, capacity, places


@dataclass(frozen=True, slots=True)
class Use:
    """How a layer used its experts in one forward pass; scalars. loss: the sum of the router's losses. dropped: share of
    wanted choices without a place. busiest: the largest share of tokens by first choice."""

    loss: Tensor
    dropped: Tensor
    busiest: Tensor


class Experts(nn.Module):
    """(B, L, width) -> (B, L, width): each token goes through the experts its router chooses, weighted by their gates.

    A choice beyond an expert's capacity is dropped: that expert adds nothing, and the layer's residual passes the token on.
    capacity_factor: (training, evaluation), times choices x tokens / experts; None: no limit, which waits for the device.
    hidden: inner width of an expert. dropout: inside of an expert (Switch's expert dropout). init_scale: factor on the
    variance of the experts' matrices (Switch: 0.1). router: {kind, and its parameters}; kinds: `routers.ROUTERS`.

    `latest`: what the last forward pass showed; None before the first one.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        num_experts: int,
        *,
        router: Mapping[str, Any] | None = None,
        capacity_factor: tuple[float, float] | None = (1.25, 2.0),
        dropout: float = 0.0,
        init_scale: float = 0.1,
        activation: Callable[[Tensor], Tensor] = F.gelu,
    ) -> None:
        super().__init__()
        spec = dict(router or {"kind": "switch"})
        kind = spec.pop("kind", "switch")
        if kind not in ROUTERS:
            raise ValueError(f"router: no kind {kind!r}; there are {', '.join(ROUTERS)}")
        self.router = ROUTERS[kind](width, num_experts, **spec)
        self.num_experts, self.capacity_factor = num_experts, capacity_factor
        self.dropout, self.init_scale, self.activation = dropout, init_scale, activation
        self.up = nn.Parameter(torch.empty(num_experts, width, hidden))
        self.up_bias = nn.Parameter(torch.zeros(num_experts, 1, hidden))
        self.down = nn.Parameter(torch.empty(num_experts, hidden, width))
        self.down_bias = nn.Parameter(torch.zeros(num_experts, 1, width))
        self.group: dist.ProcessGroup | None = None
        self.latest: Use | None = None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws truncated normals with variance init_scale / fan-in (Switch, section 2.4), biases 0."""
        for p in (self.router.weight, self.up, self.down):
            std = (self.init_scale / p.shape[-2]) ** 0.5
            nn.init.trunc_normal_(p, std=std, a=-2 * std, b=2 * std)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask: (B, L) bool, False for padding, which asks no expert."""
        tokens = x.flatten(0, -2)
        routing = self.router(tokens, None if mask is None else mask.flatten())
        place = places(routing, self.num_experts)
        room = self._room(len(tokens), place)
        kept = routing.wanted & (place < room)
        shared = self._shared(room, x.device)
        out = self._combine(tokens, routing, torch.where(kept, place, shared), kept, shared)
        self._note(routing, kept)
        return out.view_as(x)

    def _room(self, num_tokens: int, place: Tensor) -> int:
        if self.capacity_factor is None:
            return int(place.max()) + 1
        factor = self.capacity_factor[0 if self.training else 1]
        return capacity(num_tokens, self.num_experts, self.router.choices, factor)

    def _shared(self, room: int, device: torch.device) -> int:
        """Returns the most places that an expert has on any rank of the group, whose numbers of tokens may differ."""
        if self.group is None:
            return room
        most = torch.tensor(room, device=device)
        dist.all_reduce(most, dist.ReduceOp.MAX, group=self.group)
        return int(most)

    def _combine(self, tokens: Tensor, routing: Routing, place: Tensor, kept: Tensor, room: int) -> Tensor:
        """Sends tokens to their experts' places and adds up what comes back. A dropped choice goes to a place that nobody
        reads, and gets nothing back."""
        width = tokens.shape[1]
        slot = torch.where(kept, routing.experts * room + place, self.num_experts * room)  # (N, k)
        repeated = tokens[:, None].expand(-1, slot.shape[1], -1).reshape(-1, width)
        inbox = tokens.new_zeros(self.num_experts * room + 1, width).index_add(0, slot.flatten(), repeated)
        answers = self._run(inbox[:-1].view(self.num_experts, room, width)).reshape(-1, width)
        answers = torch.cat([answers, answers.new_zeros(1, width)])
        gates = (routing.gates * kept).to(answers.dtype)
        return (answers[slot] * gates[..., None]).sum(1).to(tokens.dtype)

    def _run(self, inbox: Tensor) -> Tensor:
        """(E, C, width) -> (E, C, width). With a group, the inboxes of an expert come from all ranks and go back there."""
        if self.group is None:
            return self._mlp(inbox, slice(None))
        world, rank = dist.get_world_size(self.group), dist.get_rank(self.group)
        own = self.num_experts // world
        _, room, width = inbox.shape
        came = all_to_all(inbox, self.group).view(world, own, room, width).transpose(0, 1)
        made = self._mlp(came.reshape(own, world * room, width), slice(rank * own, (rank + 1) * own))
        back = made.view(own, world, room, width).transpose(0, 1).contiguous()
        return all_to_all(back.view(-1, room, width), self.group)

    def _mlp(self, x: Tensor, of: slice) -> Tensor:
        inner = self.activation(torch.baddbmm(self.up_bias[of].to(x.dtype), x, self.up[of].to(x.dtype)))
        inner = F.dropout(inner, self.dropout, self.training)
        return torch.baddbmm(self.down_bias[of].to(x.dtype), inner, self.down[of].to(x.dtype))

    def _note(self, routing: Routing, kept: Tensor) -> None:
        num_wanted = routing.wanted.sum().clamp(min=1)
        dropped = 1 - kept.sum() / num_wanted
        self.latest = Use(
            sum(routing.losses.values(), torch.zeros_like(dropped)), dropped, routing.share.max()
        )

    def spread(self, group: dist.ProcessGroup) -> None:
        """Lets each rank of a group compute an equal part of the experts. All ranks keep all weights; each has its own
        tokens and places. Once gradients are averaged over ranks, they are those of ranks that compute all experts.

        Raises ValueError if the experts cannot be divided.
        """
        if self.capacity_factor is None:
            raise ValueError("experts over ranks need a capacity_factor: all ranks exchange as many places")
        world = dist.get_world_size(group)
        if self.num_experts % world:
            raise ValueError(f"{self.num_experts} experts cannot be spread over {world} ranks in equal parts")
        self.group = group


class _AllToAll(torch.autograd.Function):
    """Part i of dimension 0 goes to rank i; the gradient goes the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        out = torch.empty_like(x)
        dist.all_to_all_single(out, x.contiguous(), group=group)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        out = torch.empty_like(grads[0])
        dist.all_to_all_single(out, grads[0].contiguous(), group=ctx.group)
        return out, None


def all_to_all(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Returns the parts that all ranks have for this one, in rank order. x: (W x n, ...), the same shape on all ranks."""
    out: Tensor = _AllToAll.apply(x, group)
    return out


def spread_problem(model: nn.Module, num: int) -> str | None:
    """Returns why the experts of a model cannot be spread over `num` ranks; None if they can."""
    found = experts_of(model)
    if not found:
        return "mesh: expert: the model has no layer of experts; remove `expert`"
    for name, layer in found.items():
        if layer.capacity_factor is None:
            return f"mesh: expert: {name} has no capacity_factor, so no number of places that ranks could exchange"
        if layer.num_experts % num:
            return f"mesh: expert: {name} has {layer.num_experts} experts, which {num} workers cannot divide"
    return None


def experts_of(model: nn.Module) -> dict[str, Experts]:
    """Returns name -> layer of experts in a model."""
    return {name: part for name, part in model.named_modules() if isinstance(part, Experts)}
