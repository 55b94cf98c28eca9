"""Oscar+'s 3-way contrast. Zhang et al. 2021 (VinVL), https://arxiv.org/abs/2101.00529, equation 2."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vlpipe.models.interface.objective import Objective, Term
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.interface.pair_capabilities import TellsPolluted


class Polluted(Objective):
    """`polluted`: cross entropy in nats of [right, wrong tags, wrong caption] per row; `polluted_accuracy` is a diagnostic.

    Its view needs the corruptor `image_text.pollute:Pollute` for `stream`. Raises ValueError without it.
    """

    LOSSES = ("polluted",)
    NEEDS = (TellsPolluted,)

    def __init__(self, *, stream: str = "text") -> None:
        super().__init__()
        self.stream = stream

    def predicted(self, out: Outputs) -> tuple[Tensor, Tensor]:
        logits = out.polluted.float()
        return logits, torch.ones(len(logits), dtype=torch.bool, device=logits.device)

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        target = out.batch.stream(self.stream).target
        if "polluted" not in target:
            raise ValueError("this view has no corruptor `pollute`, so no triple is known to be wrong")
        labels, logits = target["polluted"], out.polluted.float()
        right = (logits.argmax(1) == labels).sum().float()
        return {
            "polluted": Term(F.cross_entropy(logits, labels, reduction="sum"), len(labels)),
            "polluted_accuracy": Term(right, len(labels)),
        }
