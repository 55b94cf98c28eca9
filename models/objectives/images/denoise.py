"""The loss of denoising autoencoders. Vincent et al. 2010, https://jmlr.org/papers/v11/vincent10a.html."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from vlpipe.models.interface.objective import Objective, Term
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.interface.pretext_capabilities import Denoises


class Denoise(Objective):
    """`denoise`: of the clean values, the sum over values, then the mean over pictures.

    kind: "cross_entropy", in nats, of values from 0 to 1 and a sigmoid of what the model says; "squared", of what it says.
    `denoise_entropy` is a diagnostic: the least that cross entropy can be, that of the clean values themselves.
    """

    LOSSES = ("denoise",)
    NEEDS = (Denoises,)

    def __init__(self, *, kind: Literal["cross_entropy", "squared"] = "cross_entropy") -> None:
        super().__init__()
        if kind not in ("cross_entropy", "squared"):
            raise ValueError(f"objectives: kind is cross_entropy or squared, got {kind!r}")
        self.kind = kind

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        said, clean = out.denoised.float(), out.clean.float()
        if self.kind == "squared":
            return {"denoise": Term((said - clean).square().sum(), len(out))}
        total = F.binary_cross_entropy_with_logits(said, clean, reduction="sum")
        least = F.binary_cross_entropy(clean, clean, reduction="sum")
        return {"denoise": Term(total, len(out)), "denoise_entropy": Term(least, len(out))}
