"""SigLIP's pairwise sigmoid loss. Zhai et al. 2023, https://arxiv.org/abs/2303.15343."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from vlpipe.models import distributed
from vlpipe.models.interface.capabilities import EmbedsImages, EmbedsTexts, HasTemperature
from vlpipe.models.interface.objective import Objective, Scope, Term
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.itc import one_hot, same_id


@runtime_checkable
class HasLogitBias(Protocol):
    """Has a learned bias of its similarities, `logit_bias`: added after the division by `temp`."""

    logit_bias: Any


class Sigmoid(Objective):
    """`sigmoid`: -log sigmoid(z (x . y / temp + bias)) in nats, summed over all texts of the step, mean over images.

    z is 1 for the image's own text and -1 for all others (equation 1). share: rows of the same picture (`batch.same`) have
    z = 1, too. `temp` and `logit_bias` are diagnostics.
    """

    LOSSES = ("sigmoid",)
    NEEDS = (EmbedsImages, EmbedsTexts, HasTemperature, HasLogitBias)
    SCOPE: Scope = "batch"
    FEATURES = ("image_feat", "text_feat")

    def __init__(self, *, share: bool = False) -> None:
        super().__init__()
        self.share = share

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        image, own = out.image_feat, out.batch.same
        texts = distributed.gather_with_grad(out.text_feat)
        positives = same_id(own, distributed.gather(own)) if self.share else one_hot(own, len(texts))
        temp, bias = out.model.temp, out.model.logit_bias
        with torch.autocast(image.device.type, enabled=False):  # fp32, as for other contrasts
            logits = image.float() @ texts.float().t() / temp + bias
            total = -F.logsigmoid(torch.where(positives, logits, -logits)).sum()
        return {
            "sigmoid": Term(total, len(out)),
            "temp": temp.detach().clone(),
            "logit_bias": bias.detach().sum(),
        }
