"""SimCLR's contrast of two views of each image. Chen et al. 2020, https://arxiv.org/abs/2002.05709, equation 1."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vlpipe.models import distributed
from vlpipe.models.interface.image_capabilities import EmbedsViews
from vlpipe.models.interface.objective import Objective, Scope, Term
from vlpipe.models.interface.outputs import Outputs


class NtXent(Objective):
    """`nt_xent`: cross entropy in nats of an image's other view among all other views of the step, mean over all 2 N views.

    `nt_xent_accuracy` is a diagnostic. temp: 0.1 is the paper's best of its table 5. The released code optimises the sum of
    both directions: `weight: 2`.
    """

    LOSSES = ("nt_xent",)
    NEEDS = (EmbedsViews,)
    SCOPE: Scope = "batch"
    FEATURES = ("view_feats",)

    def __init__(self, *, temp: float = 0.1) -> None:
        super().__init__()
        if temp <= 0:
            raise ValueError(f"objectives: temp must be above 0, got {temp}")
        self.temp = temp

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        own = out.view_feats.float()  # (B, 2, E)
        every = distributed.gather_with_grad(own).transpose(0, 1)  # (2, N, E): first views, then second ones
        num, all_rows = len(own), every.shape[1]
        rows = distributed.rank() * num + torch.arange(num, device=own.device)
        total, right = own.new_zeros(()), own.new_zeros(())
        with torch.autocast(own.device.type, enabled=False):  # fp32: a small temperature magnifies rounding
            for view in (0, 1):
                logits = own[:, view] @ every.flatten(0, 1).t() / self.temp
                itself, partner = view * all_rows + rows, (1 - view) * all_rows + rows
                logits = logits.scatter(1, itself[:, None], float("-inf"))
                total = total + F.cross_entropy(logits, partner, reduction="sum")
                right = right + (logits.argmax(1) == partner).sum()
        return {"nt_xent": Term(total / 2, num), "nt_xent_accuracy": Term(right / 2, num)}
