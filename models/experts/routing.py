"""What a router decides about tokens, and the order in which experts are filled."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Routing:
    """The experts of N tokens, k each, the first choice first.

    experts: (N, k) int64. gates: (N, k) float32, what the expert's output is multiplied with. wanted: (N, k) bool, False
    where no expert is asked. losses: balancing losses, scalars. share: (E,) share of tokens by first choice, before any
    limit.
    """

    experts: Tensor
    gates: Tensor
    wanted: Tensor
    share: Tensor
    losses: Mapping[str, Tensor] = field(default_factory=dict)


def capacity(num_tokens: int, num_experts: int, choices: int, factor: float) -> int:
    """Returns how many tokens an expert takes: factor x choices x tokens / experts, rounded up, at least 1."""
    return max(1, math.ceil(factor * choices * num_tokens / num_experts))


def places(routing: Routing, num_experts: int) -> Tensor:
    """Returns the place (N, k) of each choice in its expert's queue: first choices of all tokens in order, then second ones.

    Choices that are not `wanted` get -1.
    """
    num, k = routing.experts.shape
    queue = routing.experts.T.reshape(-1)  # (k x N)
    wanted = routing.wanted.T.reshape(-1)
    chosen = (queue[:, None] == torch.arange(num_experts, device=queue.device)) & wanted[:, None]
    before = chosen.cumsum(0) - 1
    place = before.gather(1, queue[:, None]).squeeze(1).masked_fill(~wanted, -1)
    return place.view(k, num).T


def first_share(experts: Tensor, num_experts: int, valid: Tensor | None) -> Tensor:
    """Returns (E,) the share of tokens whose first choice is each expert. experts: (N, k); valid: (N,) bool."""
    chosen = (experts[:, :1] == torch.arange(num_experts, device=experts.device)).float()
    if valid is None:
        return chosen.mean(0)
    return (chosen * valid[:, None]).sum(0) / valid.sum().clamp(min=1)


def token_mean(values: Tensor, valid: Tensor | None) -> Tensor:
    """Returns the mean of (N, E) over tokens, (E,)."""
    if valid is None:
        return values.mean(0)
    return (values * valid[:, None]).sum(0) / valid.sum().clamp(min=1)
