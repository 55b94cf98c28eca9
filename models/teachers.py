"""Teachers: models that are not trained by gradient and whose outputs are targets or candidates of losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Ema(nn.Module):
    """An exponential moving average of the model: momentum x teacher + (1 - momentum) x student, once per optimiser step.

    The teacher is updated before the first forward pass of a step (as in MoCo, ALBEF and BLIP). dropout: whether it is in
    training mode when the student is. What is copied is decided by the model's `teacher_copy()`.
    """

    def __init__(self, *, momentum: float = 0.995, dropout: bool = True) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f"teachers: momentum must be from 0 to 1, got {momentum}")
        self.momentum, self.dropout = momentum, dropout

    def bind(self, model: Any) -> None:
        """Makes the copy; called once, before a checkpoint is loaded."""
        self.copy: nn.Module = model.teacher_copy().requires_grad_(False)

    def train(self, mode: bool = True) -> Ema:
        super().train(mode)
        if hasattr(self, "copy"):
            self.copy.train(mode and self.dropout)
        return self

    @torch.no_grad()
    def follow(self, model: nn.Module) -> None:
        """Moves the teacher's parameters towards those of `model`, by name, and copies buffers (batch norm's statistics).

        Parameters that are frozen in the model are equal already.
        """
        own = dict(model.named_parameters())
        moving: dict[
            type, list[tuple[Tensor, Tensor]]
        ] = {}  # by type: FSDP2 shards some and holds others whole
        for name, p in self.copy.named_parameters():
            if own[name].requires_grad:
                moving.setdefault(type(p.data), []).append((p, own[name].detach()))
        for pairs in moving.values():
            torch._foreach_lerp_([p for p, _ in pairs], [to for _, to in pairs], 1 - self.momentum)
        buffers = dict(model.named_buffers())
        for name, buffer in self.copy.named_buffers():
            buffer.copy_(buffers[name])

    def evaluate_as(self, model: nn.Module) -> None:
        """Puts the parts of the copy into evaluation mode that are in it in `model`: those that are frozen."""
        own = dict(model.named_modules())
        for name, module in self.copy.named_modules():
            if name in own and not own[name].training:
                module.eval()
