"""Image-text matching with hard negatives (BLIP, ALBEF).

Negatives of the same picture are masked with -inf before an fp32 softmax; BLIP masks after it, and a sharp temperature then
leaves a sum of 0 and "invalid multinomial distribution".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vlpipe.models import distributed
from vlpipe.models.interface.batch import Batch, Stream
from vlpipe.models.interface.capabilities import EmbedsImages, EmbedsTexts, HasTemperature, Matches
from vlpipe.models.interface.objective import Objective, Scope, Term
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.itc import same_id


class Itm(Objective):
    """`itm`: cross entropy in nats of (match, image negative, text negative) per row; `itm_accuracy` is a diagnostic.

    The class prior is 1:2, so 0.6365 nats and accuracy 2/3 mean that nothing is learned. Rows with no valid negative are
    excluded together with their positive, so the class ratio stays 1:2. negatives: the features by which they are chosen,
    "student" (BLIP's finetuning) or "momentum" (its pretraining; the recipe needs a teacher "ema"). all_ranks: choose among
    the rows of all ranks (BLIP's COCO finetuning) instead of this rank's.
    """

    LOSSES = ("itm",)
    NEEDS: ClassVar[tuple[type, ...]] = (Matches, EmbedsImages, EmbedsTexts, HasTemperature)
    SCOPE: Scope = "rank"

    def __init__(self, *, negatives: str = "student", all_ranks: bool = False, teacher: str = "ema") -> None:
        super().__init__()
        if negatives not in ("student", "momentum"):
            raise ValueError(f"itm: negatives must be student or momentum, got {negatives!r}")
        self.negatives, self.all_ranks, self.teacher = negatives, all_ranks, teacher

    def counts(self, batch: Batch) -> Mapping[str, Tensor | float]:
        valid = ~self._same(batch).all(1)
        return {"itm": 3 * valid.sum()}

    def _same(self, batch: Batch) -> Tensor:
        """Which candidate is the same picture, (B, K) bool."""
        return same_id(batch.same, distributed.gather(batch.same) if self.all_ranks else batch.same)

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        feats = out if self.negatives == "student" else out.teacher(self.teacher)
        same, temp = self._same(out.batch), out.model.temp
        gather = distributed.gather if self.all_ranks else torch.Tensor.detach
        negative_text, valid = hard_negatives(out.image_feat, gather(feats.text_feat), temp, same)
        negative_image, _ = hard_negatives(out.text_feat, gather(feats.image_feat), temp, same)
        rows = torch.arange(len(out), device=same.device)
        paired = self._of_all_ranks if self.all_ranks else self._of_this_rank
        logits = paired(out, rows, negative_text, negative_image).match
        return matching(logits, valid)

    def _of_this_rank(self, out: Outputs, rows: Tensor, texts: Tensor, images: Tensor) -> Outputs:
        return out.paired({"text": torch.cat([rows, rows, texts]), "image": torch.cat([rows, images, rows])})

    def _of_all_ranks(self, out: Outputs, rows: Tensor, texts: Tensor, images: Tensor) -> Outputs:
        encodings = getattr(out.model, "ENCODINGS", {}).get("image", ())
        if not encodings:
            raise ValueError(
                f"itm: all_ranks needs a model that encodes images apart from texts; {type(out.model).__name__} does not"
            )
        given = {}
        for name in encodings:
            own = getattr(out, name)
            given[name] = torch.cat([own, distributed.gather_with_grad(own)[images]])
        text = out.stream("text")
        assert text.mask is not None
        everywhere = Stream(distributed.gather_padded(text.data), distributed.gather_padded(text.mask))
        own_text = distributed.rank() * len(rows) + rows
        return out.paired(
            {
                "text": torch.cat([own_text, own_text, texts]),
                "image": torch.cat([rows, len(rows) + rows, rows]),
            },
            streams={"text": everywhere},
            given=given,
        )


@torch.no_grad()
def hard_negatives(
    queries: Tensor, candidates: Tensor, temp: Tensor, invalid: Tensor
) -> tuple[Tensor, Tensor]:
    """One candidate per query, drawn with softmax(similarity / temp) over those not `invalid` (B, K).

    Returns indices (B,), and which rows have a valid candidate at all, (B,) bool; the other rows' index is meaningless.
    """
    with torch.autocast(temp.device.type, enabled=False):
        return drawn(queries.float() @ candidates.float().t() / temp, invalid)


@torch.no_grad()
def drawn(sims: Tensor, invalid: Tensor) -> tuple[Tensor, Tensor]:
    """As `hard_negatives`, of similarities (B, K) that are divided by the temperature."""
    valid = ~invalid.all(1)
    weights = sims.masked_fill(invalid, float("-inf")).masked_fill(~valid[:, None], 0.0).softmax(1)
    # as torch.multinomial of one draw, which also waits for the device to check its input
    return (weights / torch.empty_like(weights).exponential_()).argmax(1), valid


def matching(logits: Tensor, valid: Tensor) -> dict[str, Term | Tensor]:
    """Returns loss and accuracy of logits (3B, 2): B matches, then 2B negatives. Rows not `valid` (B,) are excluded."""
    labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    labels[: len(valid)] = 1
    counted = valid.repeat(3)
    each = F.cross_entropy(logits.float(), labels, reduction="none")
    right = (logits.argmax(1) == labels) & counted
    return {
        "itm": Term((each * counted).sum(), counted.sum()),
        "itm_accuracy": Term(right.sum().float(), counted.sum()),
    }
