"""The losses that keep experts evenly used (`models/experts`)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from vlpipe.models.experts.layer import experts_of
from vlpipe.models.interface.objective import Objective, Scope, Term
from vlpipe.models.interface.outputs import Outputs


class ExpertBalance(Objective):
    """`balance`: the routers' losses, the mean over layers. Put it after the objective that runs the layers.

    over_layers: "sum" adds the losses of all layers, as Switch's and GShard's papers write it; the mean is the sum with a
    weight divided by the number of layers.

    weight of a router's loss: 1; the recipe's `weight` of this objective is Switch's alpha (0.01). noisy_top_k has two,
    which are added. Diagnostics: `dropped`, `busiest`, the mean share of dropped choices and the largest share of an expert.
    SCOPE is "rank": a router balances the tokens that one rank forwards together.
    """

    LOSSES = ("balance",)
    SCOPE: Scope = "rank"

    def __init__(self, *, over_layers: Literal["mean", "sum"] = "mean") -> None:
        super().__init__()
        if over_layers not in ("mean", "sum"):
            raise ValueError(f"ExpertBalance: over_layers must be mean or sum, got {over_layers!r}")
        self.over_layers = over_layers

    def bind(self, model: Any) -> None:
        if not experts_of(model):
            raise ValueError("ExpertBalance: the model has no layer of experts")

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        found = [layer.latest for layer in experts_of(out.model).values()]
        used = [one for one in found if one is not None]
        if len(used) < len(found):
            raise ValueError("ExpertBalance: put it after the objective that runs the layers of experts")
        losses = torch.stack([one.loss for one in used])
        values = {
            "balance": losses.mean() if self.over_layers == "mean" else losses.sum(),
            "dropped": torch.stack([one.dropped for one in used]).mean(),
            "busiest": torch.stack([one.busiest for one in used]).max(),
        }
        return {name: Term(value, 1.0) for name, value in values.items()}
