"""CPC's loss: the vector of a place some rows below, among those of all places.

Oord et al. 2018, https://arxiv.org/abs/1807.03748.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vlpipe.models import distributed
from vlpipe.models.interface.objective import Objective, Scope, Term
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.interface.pretext_capabilities import PredictsRows


class Cpc(Objective):
    """`cpc`: cross entropy in nats of the predicted vector among those of all places of all images of the step (equation 4).

    The mean over places, then over steps. `cpc_accuracy` is a diagnostic. scale: predictions are multiplied by it (version
    2: 0.1).
    """

    LOSSES = ("cpc",)
    NEEDS = (PredictsRows,)
    SCOPE: Scope = "batch"
    FEATURES = ("place_feats", "row_predictions")

    def __init__(self, *, scale: float = 1.0) -> None:
        super().__init__()
        if scale <= 0:
            raise ValueError(f"objectives: scale must be above 0, got {scale}")
        self.scale = scale

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        feats, predicted = out.place_feats.float(), out.row_predictions.float()
        num, rows, columns, _ = feats.shape
        first, steps = out.model.first_step, predicted.shape[1]
        every = distributed.gather_with_grad(feats).flatten(0, 2)
        places = torch.arange(num * rows * columns, device=feats.device).view(num, rows, columns)
        places = places + distributed.rank() * places.numel()
        total, right = feats.new_zeros(()), feats.new_zeros(())
        with torch.autocast(feats.device.type, enabled=False):  # fp32: products of long vectors are large
            for k in range(steps):
                ahead = first + k
                true = places[:, ahead:].flatten()
                logits = self.scale * predicted[:, k, : rows - ahead].flatten(0, 2) @ every.t()
                share = num / len(true) / steps
                total = total + share * F.cross_entropy(logits, true, reduction="sum")
                right = right + share * (logits.argmax(1) == true).sum()
        return {"cpc": Term(total, num), "cpc_accuracy": Term(right, num)}
