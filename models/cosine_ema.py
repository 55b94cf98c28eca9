"""A momentum teacher that follows ever more slowly: BYOL, MoCo v3."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from vlpipe.models.teachers import Ema


class CosineEma(Ema):
    """As `Ema`, with a momentum that rises from `momentum` to 1 over `steps` updates, by half a cosine.

    Grill et al. 2020 (BYOL), https://arxiv.org/abs/2006.07733, section 3.2: 1 - (1 - momentum) (cos(pi k / steps) + 1) / 2.
    steps: of the run.
    """

    num_updates: Tensor

    def __init__(self, *, steps: int, momentum: float = 0.99, dropout: bool = True) -> None:
        super().__init__(momentum=momentum, dropout=dropout)
        if steps < 1:
            raise ValueError(f"teachers: steps must be at least 1, got {steps}")
        self.base, self.steps = momentum, steps
        self._num: int | None = 0  # `num_updates`, without a wait for the device; None: not read yet
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.long))
        self.register_load_state_dict_post_hook(CosineEma._forget_count)

    def _forget_count(self, _: Any) -> None:
        self._num = None

    @torch.no_grad()
    def follow(self, model: nn.Module) -> None:
        if self._num is None:
            self._num = int(self.num_updates)
        done = min(1.0, self._num / self.steps)
        self.momentum = 1 - (1 - self.base) * (math.cos(math.pi * done) + 1) / 2
        super().follow(model)
        self._num += 1
        self.num_updates.fill_(self._num)
