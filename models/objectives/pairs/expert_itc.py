"""VLMo's contrast, by the experts of one modality and by those of both.

Bao et al. 2021, https://arxiv.org/abs/2111.02358. The paper says the former; the released code averages both.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from vlpipe.models import distributed
from vlpipe.models.interface.capabilities import EmbedsImages, EmbedsTexts, HasTemperature
from vlpipe.models.interface.objective import Objective, Scope, Term
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.itc import one_hot, same_id


@runtime_checkable
class EmbedsTwice(Protocol):
    """Embeds images and texts a second time, by experts of both: (B, E), unit norm; `vl_temp` divides these similarities."""

    vl_temp: Tensor

    def image_vl_feat(self, out: Outputs) -> Tensor: ...
    def text_vl_feat(self, out: Outputs) -> Tensor: ...


class ExpertItc(Objective):
    """`itc`: the mean of two contrasts over the whole batch, each as `InfoNce`; `temp` and `vl_temp` are diagnostics.

    share: rows of the same picture share the mass of the target; False, as released: they are negatives.
    """

    LOSSES = ("itc",)
    NEEDS = (EmbedsImages, EmbedsTexts, HasTemperature, EmbedsTwice)
    SCOPE: Scope = "batch"
    FEATURES = ("image_feat", "text_feat", "image_vl_feat", "text_vl_feat")

    def __init__(self, *, share: bool = False) -> None:
        super().__init__()
        self.share = share

    def _targets(self, own: Tensor) -> Tensor:
        """Target probabilities (B, K) over the rows of all ranks."""
        everywhere = distributed.gather(own)
        right = (same_id(own, everywhere) if self.share else one_hot(own, len(everywhere))).float()
        return right / right.sum(1, keepdim=True)

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        model, targets = out.model, self._targets(out.batch.same)
        pairs = (
            (out.image_feat, out.text_feat, model.temp),
            (out.image_vl_feat, out.text_vl_feat, model.vl_temp),
        )
        total = torch.zeros((), device=targets.device)
        for image, text, temp in pairs:
            images, texts = distributed.gather_with_grad(image), distributed.gather_with_grad(text)
            with torch.autocast(image.device.type, enabled=False):  # fp32, as in InfoNce
                for own, others in ((image, texts), (text, images)):
                    logprobs = (own.float() @ others.float().t() / temp).log_softmax(1)
                    total = total - (logprobs * targets).sum() / 4
        temps = {"temp": model.temp.detach().clone(), "vl_temp": model.vl_temp.detach().clone()}
        return {"itc": Term(total, len(out)), **temps}
