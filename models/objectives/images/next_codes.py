"""Prediction of an image's codes one after the other: iGPT, and the images of DALL-E."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from vlpipe.models.interface.batch import Batch
from vlpipe.models.interface.code_capabilities import PredictsNextCodes
from vlpipe.models.interface.objective import Objective, Term
from vlpipe.models.interface.outputs import Outputs


class NextCodes(Objective):
    """`next_code` and `next_code_accuracy`: cross entropy in nats, and accuracy, of each code given those before it.

    Chen et al. 2020, https://cdn.openai.com/papers/Generative_Pretraining_from_Pixels_V2.pdf, section 2.1. DALL-E gives it a
    weight of 7/8, beside 1/8 for its texts (`lm:Lm`).
    """

    LOSSES = ("next_code",)
    NEEDS = (PredictsNextCodes,)

    def bind(self, model: Any) -> None:
        self.num_places = model.num_places

    def counts(self, batch: Batch) -> Mapping[str, Tensor | float]:
        return {"next_code": float(len(batch) * self.num_places)}

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        logits = out.model.predict_codes(out.next_code_hidden).flatten(0, 1).float()
        true = out.image_codes.flatten()
        total = F.cross_entropy(logits, true, reduction="sum")
        right = (logits.argmax(1) == true).sum().float()
        return {"next_code": Term(total, true.numel()), "next_code_accuracy": Term(right, true.numel())}
