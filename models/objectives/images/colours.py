"""Colorization's loss: bins of the ab plane, rare ones counting more. Zhang et al. 2016, https://arxiv.org/abs/1603.08511."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vlpipe.models.interface.objective import Objective, Term
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.interface.pretext_capabilities import Colours

GREY = 5.0  # least |a| or |b| of some pixel of a picture with colours; the authors' code


class ColourClasses(Objective):
    """`colours`: cross entropy in nats of the soft bins of each place, weighted by the nearest one's rarity (equation 2).

    The mean over places, then over pictures; grey pictures count nothing. `colour_accuracy`, of the nearest bin, and
    `colour_balanced`, the same with those weights, are diagnostics. rebalance: False for a weight of 1 for each bin.
    """

    LOSSES = ("colours",)
    NEEDS = (Colours,)

    def __init__(self, *, rebalance: bool = True) -> None:
        super().__init__()
        self.rebalance = rebalance

    def bind(self, model: Any) -> None:
        prior = model.bins.prior
        if self.rebalance and not prior.is_meta and not bool(prior.any()):
            raise ValueError(
                "objectives: ColourClasses needs the shares of colours; load them into bins by `init_parts`, or set "
                "rebalance: false"
            )

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        bins = out.model.bins
        with torch.autocast(out.colour_logits.device.type, enabled=False):
            logits = out.colour_logits.float().permute(0, 2, 3, 1)  # (B, h, w, Q)
            ab = out.true_ab.float().permute(0, 2, 3, 1)
            shape = logits.shape[:3]
            soft, shares = bins.soft(ab.flatten(0, 2))
            nearest = soft[:, 0]
            said = logits.flatten(0, 2).log_softmax(1)
            each = -(shares * said.gather(1, soft)).sum(1)
            weight = bins.weights()[nearest] if self.rebalance else torch.ones_like(each)
            has_colour = (ab.abs() > GREY).flatten(1).any(1).to(each.dtype)
            loss = (weight * each).view(shape).mean((1, 2)) * has_colour
            right = (said.argmax(1) == nearest).to(each.dtype)
            balanced = (weight * right).view(shape).mean((1, 2)).sum()
        return {
            "colours": Term(loss.sum(), len(out)),
            "colour_accuracy": Term(right.view(shape).mean((1, 2)).sum(), len(out)),
            "colour_balanced": Term(balanced, weight.view(shape).mean((1, 2)).sum()),
        }
