"""Image-text matching with hard negatives (BLIP, ALBEF).

Negatives with the own `image_id` are masked with -inf before an fp32 softmax; BLIP masks after it, and a
sharp temperature then leaves a sum of 0 and "invalid multinomial distribution".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models import distributed
from vlpipe.models.features import Features
from vlpipe.models.objectives.itc import same_id


class Itm(nn.Module):
    """`itm`: cross entropy in nats of (match, image negative, text negative) per row; `itm_accuracy` is a
    diagnostic.

    The class prior is 1:2, so 0.6365 nats and accuracy 2/3 mean that nothing is learned. A row without any
    valid negative counts not at all, its positive neither: that keeps the prior. negatives: by which text
    and image features they are chosen, "student" (BLIP's finetuning) or "momentum" (its pretraining; `Itc`
    must come first). all_ranks: choose among the rows of all ranks (BLIP's COCO finetuning) rather than the
    own.
    """

    LOSSES: ClassVar[tuple[str, ...]] = ("itm",)

    def __init__(self, *, negatives: str = "student", all_ranks: bool = False) -> None:
        super().__init__()
        if negatives not in ("student", "momentum"):
            raise ValueError(f"itm: negatives must be student or momentum, got {negatives!r}")
        self.negatives, self.all_ranks = negatives, all_ranks

    def bind(self, model: Any) -> None:
        """Nothing to bind: no state."""

    def forward(self, model: Any, batch: Mapping[str, Any], features: Features) -> dict[str, Tensor]:
        own_id, num = batch["image_id"], len(batch["image_id"])
        gather = distributed.gather if self.all_ranks else torch.Tensor.detach
        image_feat, text_feat = self._candidates(features)
        invalid = same_id(own_id, gather(own_id))
        negative_text, valid = hard_negatives(features.image_feat, gather(text_feat), model.temp, invalid)
        negative_image, _ = hard_negatives(features.text_feat, gather(image_feat), model.temp, invalid)
        tokens = features.image_tokens
        rows = torch.arange(num, device=own_id.device)
        if self.all_ranks:
            everywhere = distributed.gather_with_grad(tokens)
            tokens, negative_image = torch.cat([tokens, everywhere[negative_image]]), rows + num
            ids, mask = gather(batch["input_ids"]), gather(batch["attention_mask"])
            own = distributed.rank() * num + rows
        else:
            ids, mask, own = features.input_ids, features.attention_mask, rows
        texts = torch.cat([own, own, negative_text])
        images = torch.cat([rows, negative_image, rows])
        logits = model.match_logits(ids[texts], mask[texts], tokens, images)
        return matching(logits, valid)

    def _candidates(self, features: Features) -> tuple[Tensor, Tensor]:
        if self.negatives == "student":
            return features.image_feat, features.text_feat
        if features.momentum is None:
            raise ValueError(
                "itm: negatives: momentum needs the momentum features of itc; list the objective itc before itm"
            )
        return features.momentum


@torch.no_grad()
def hard_negatives(
    queries: Tensor, candidates: Tensor, temp: Tensor, invalid: Tensor
) -> tuple[Tensor, Tensor]:
    """One candidate per query, drawn with softmax(similarity / temp) over those not `invalid` (B, K).

    Returns indices (B,) and which rows have a valid candidate at all (B,) bool; the others' index means
    nothing.
    """
    with torch.autocast(temp.device.type, enabled=False):
        sims = (queries.float() @ candidates.float().t() / temp).masked_fill(invalid, float("-inf"))
    valid = ~invalid.all(1)
    weights = sims.masked_fill(~valid[:, None], 0.0).softmax(1)
    return torch.multinomial(weights, 1)[:, 0], valid


def matching(logits: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """Loss and accuracy from logits (3B, 2): B matches, then 2B negatives; rows not `valid` (B,) are left
    out.
    """
    labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    labels[: len(valid)] = 1
    counted = valid.repeat(3)
    each = F.cross_entropy(logits.float(), labels, reduction="none")
    right = (logits.argmax(1) == labels) & counted
    return {
        "itm": distributed.mean((each * counted).sum(), counted.sum()),
        "itm_accuracy": distributed.mean(right.sum().float(), counted.sum()),
    }
