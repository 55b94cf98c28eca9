"""CLIP's contrastive loss over the whole batch. Radford et al. 2021, https://arxiv.org/abs/2103.00020."""

from __future__ import annotations

import torch
from torch import Tensor

from vlpipe.models import distributed
from vlpipe.models.interface.capabilities import EmbedsImages, EmbedsTexts, HasTemperature
from vlpipe.models.interface.objective import Objective, Scope, Term
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.itc import same_id


class InfoNce(Objective):
    """`infonce`: cross entropy in nats of the right partner among all rows of the step, mean of both directions.

    Rows of the same picture (`batch.same`) share the mass of the target if `share`; CLIP counts them as negatives. `temp`
    is a diagnostic.
    """

    LOSSES = ("infonce",)
    NEEDS = (EmbedsImages, EmbedsTexts, HasTemperature)
    SCOPE: Scope = "batch"
    FEATURES = ("image_feat", "text_feat")

    def __init__(self, *, share: bool = False) -> None:
        super().__init__()
        self.share = share

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        image, text, temp = out.image_feat, out.text_feat, out.model.temp
        images, texts = distributed.gather_with_grad(image), distributed.gather_with_grad(text)
        targets = self._targets(out.batch.same)
        with torch.autocast(image.device.type, enabled=False):  # fp32: a small temperature magnifies rounding
            losses = [
                -((own.float() @ others.float().t() / temp).log_softmax(1) * targets).sum(1)
                for own, others in ((image, texts), (text, images))
            ]
        total = (losses[0] + losses[1]).sum() / 2
        return {"infonce": Term(total, len(out)), "temp": temp.detach().clone()}

    def _targets(self, own: Tensor) -> Tensor:
        """Target probabilities (B, K) over the rows of all ranks."""
        if self.share:
            positives = same_id(own, distributed.gather(own)).float()
            return positives / positives.sum(1, keepdim=True)
        targets = torch.zeros(len(own), len(own) * distributed.world_size(), device=own.device)
        first = distributed.rank() * len(own)
        targets[:, first : first + len(own)] = torch.eye(len(own), device=own.device)
        return targets
