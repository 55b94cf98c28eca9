"""MIL-NCE: contrast of clips and bags of texts said near them. Miech et al. 2020, https://arxiv.org/abs/1912.06430."""

from __future__ import annotations

import torch
from torch import Tensor

from vlpipe.models import distributed
from vlpipe.models.interface.objective import Objective, Scope, Term
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.interface.video_capabilities import ScoresNarration

NOT_THERE = -1e30  # a score that takes no part in a sum of exponentials


class MilNce(Objective):
    """`mil_nce`: per clip, -log of the share of its positives in the exponentials of scores (equation 1), in nats.

    Positives of a clip: itself with each of its candidate texts. Negatives: itself with the texts of other clips, and its
    candidates with other clips, on all ranks. Scores are dot products, without norm or temperature.

    as_released: the released code counts the positives twice in the denominator, once with each kind of negatives, so the
    loss is log 2 at least; the authors say that this is intended.
    """

    LOSSES = ("mil_nce",)
    NEEDS = (ScoresNarration,)
    SCOPE: Scope = "batch"
    FEATURES = ("clip_feat", "narration_feat")

    def __init__(self, *, as_released: bool = False) -> None:
        super().__init__()
        self.as_released = as_released

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        clips, texts = out.clip_feat.flatten(0, 1).float(), out.narration_feat.flatten(0, 1).float()
        num, there = len(clips), candidates(out.batch.stream("text").mask, texts)
        all_clips, all_texts = distributed.gather_with_grad(clips), distributed.gather_with_grad(texts)
        all_there = distributed.gather(there)
        with torch.autocast(clips.device.type, enabled=False):
            to_texts = torch.einsum("ie,jke->ijk", clips, all_texts).masked_fill(~all_there[None], NOT_THERE)
            to_clips = torch.einsum("ike,je->ijk", texts, all_clips).masked_fill(~there[:, None], NOT_THERE)
            first = distributed.rank() * num
            at = torch.arange(num, device=clips.device)
            own = to_texts[at, first + at]  # (B, K): the positives
            if not self.as_released:
                mine = (at[:, None] + first == torch.arange(len(all_clips), device=clips.device))[:, :, None]
                to_clips = to_clips.masked_fill(mine, NOT_THERE)
            pairs = torch.cat([to_texts.flatten(1), to_clips.flatten(1)], dim=1)
            losses = pairs.logsumexp(1) - own.logsumexp(1)
        per_row = num // len(out)
        return {"mil_nce": Term(losses.sum() / per_row, len(out))}


def candidates(mask: Tensor | None, texts: Tensor) -> Tensor:
    """Returns which candidates there are, (C, K) bool: those with a word, and the first of each clip.

    mask: (B, N, K, L), the words; None if there is no padding. texts: (C, K, E) with C = B x N.
    """
    if mask is None:
        return torch.ones(texts.shape[:2], dtype=torch.bool, device=texts.device)
    found = mask.any(-1).flatten(0, 1)
    first = torch.arange(found.shape[1], device=found.device) == 0
    return found | first
