"""Image-text contrast of images with several embeddings, of which the best counts. Li et al. 2023 (BLIP-2),
https://arxiv.org/abs/2301.12597.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vlpipe.models import distributed
from vlpipe.models.interface.capabilities import EmbedsImageParts, EmbedsTexts, HasTemperature
from vlpipe.models.interface.objective import Objective, Scope, Term
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.itc import one_hot, same_id


class QueryItc(Objective):
    """`itc`: cross entropy in nats of the right partner among all rows of the step, mean of both directions; no queue.

    label_smoothing: 0.1 as in the released code: this part of the target's mass is spread over all candidates. share: rows
    of the same picture share the rest (its finetuning); False: they count as negatives. `temp` is a diagnostic.
    """

    LOSSES = ("itc",)
    NEEDS = (EmbedsImageParts, EmbedsTexts, HasTemperature)
    SCOPE: Scope = "batch"
    FEATURES = ("image_feats", "text_feat")

    def __init__(self, *, label_smoothing: float = 0.1, share: bool = False) -> None:
        super().__init__()
        self.label_smoothing, self.share = label_smoothing, share

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        images, texts, temp = out.image_feats, out.text_feat, out.model.temp
        others = distributed.gather_with_grad(images), distributed.gather_with_grad(texts)
        own, num = out.batch.same, len(others[1])
        positives = same_id(own, distributed.gather(own)) if self.share else one_hot(own, num)
        targets = positives.float() / positives.sum(1, keepdim=True)
        targets = (1 - self.label_smoothing) * targets + self.label_smoothing / num
        sims = similarities(images, others[1]), similarities(others[0], texts).t()
        ways = [F.cross_entropy(s / temp, targets, reduction="sum") for s in sims]
        return {"itc": Term((ways[0] + ways[1]) / 2, len(out)), "temp": temp.detach().clone()}


def similarities(images: Tensor, texts: Tensor) -> Tensor:
    """Images (I, Q, E) and texts (T, E) -> (I, T): the dot product of the text and that of the image's embeddings that is
    nearest to it, in float32."""
    with torch.autocast(images.device.type, enabled=False):  # a small temperature magnifies rounding
        return (images.float() @ texts.float().t()).amax(1)
