"""LARS: SGD whose step for each matrix is scaled by the norm of its weights over that of its gradient.

You et al. 2017, https://arxiv.org/abs/1708.03888, with the form of MoCo v3 and MAE's linear probe: momentum is applied to
the scaled gradient, and vectors and scalars take plain steps without weight decay.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class Lars(torch.optim.Optimizer):
    """trust: the factor on the ratio of norms (the paper's eta)."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust}
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, group)

    def _step(self, parameter: Tensor, group: dict[str, Any]) -> None:
        update = parameter.grad
        assert update is not None
        if sum(size > 1 for size in parameter.shape) > 1:
            update = update.add(parameter, alpha=group["weight_decay"])
            weights, change = parameter.norm(), update.norm()
            ratio = group["trust"] * weights / change
            update = update * torch.where((weights > 0) & (change > 0), ratio, torch.ones_like(ratio))
        state = self.state[parameter]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(parameter)
        state["velocity"].mul_(group["momentum"]).add_(update)
        parameter.add_(state["velocity"], alpha=-group["lr"])
