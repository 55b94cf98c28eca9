"""Max-margin ranking of clips and narration, with negatives from the same video. Miech et al. 2019 (HowTo100M),
https://arxiv.org/abs/1906.03327, equation 3 and appendix B.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vlpipe.models import distributed
from vlpipe.models.interface.objective import Objective, Scope, Term
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.interface.video_capabilities import ScoresNarration


class MaxMargin(Objective):
    """`max_margin`: per clip i, the weighted mean of max(0, margin + s_ij - s_ii) + max(0, margin + s_ji - s_ii) over
    negatives j.

    s_ij is the score of clip j and text i. Negatives are the other clips of the batch, on all ranks; those of the same video
    together have the share `intra_rate` of the weight, those of other videos the rest. With v rows of k clips that is the
    paper's weighted sum, whose weights are intra_rate k (v - 1) / ((1 - intra_rate) (k - 1)) and 1, divided by that of its
    weights. Without negatives of one kind, those of the other have all of the weight.

    as_released: the released code's mean over all pairs, i with itself included: weights are v intra_rate within rows and
    v (1 - intra_rate) / (v - 1) between them, and 1 if rows have one clip each. A clip with itself adds 2 margin times its
    weight / (v k), which has no gradient.
    """

    # 2: `as_released` weighs clips of rows with one clip as the released code does
    VERSION = 2

    LOSSES = ("max_margin",)
    NEEDS = (ScoresNarration,)
    SCOPE: Scope = "batch"
    FEATURES = ("clip_feat", "narration_feat")

    def __init__(self, *, margin: float = 0.1, intra_rate: float = 0.5, as_released: bool = False) -> None:
        super().__init__()
        if not 0 <= intra_rate <= 1:
            raise ValueError(f"max_margin: intra_rate must be between 0 and 1, got {intra_rate}")
        self.margin, self.intra_rate, self.as_released = margin, intra_rate, as_released

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        clips, texts = out.clip_feat, out.narration_feat
        if texts.shape[2] != 1:
            raise ValueError(f"max_margin: wanted one text per clip, got {texts.shape[2]}")
        num, per_row = len(out), clips.shape[1]
        same = out.batch.same.repeat_interleave(per_row)
        clips, texts = clips.flatten(0, 1).float(), texts.flatten(0, 2).float()
        all_clips, all_texts = distributed.gather_with_grad(clips), distributed.gather_with_grad(texts)
        with torch.autocast(clips.device.type, enabled=False):
            own = (clips * texts).sum(1, keepdim=True)
            cost = F.relu(self.margin + texts @ all_clips.t() - own)
            cost = cost + F.relu(self.margin + clips @ all_texts.t() - own)
            weights = self._weights(same, distributed.gather(same), per_row)
        return {"max_margin": Term((cost * weights).sum() / per_row, num)}

    def _weights(self, own: Tensor, everyone: Tensor, per_row: int) -> Tensor:
        """Returns the weights (N, M) of pairs of own clips with those of all ranks."""
        at = torch.arange(len(everyone), device=own.device)
        mine = at[distributed.rank() * len(own) :][: len(own), None]
        if self.as_released:
            rows = len(everyone) // per_row
            block = mine // per_row == at // per_row
            if per_row == 1:
                return torch.ones(block.shape, device=own.device) / len(everyone)
            intra, inter = rows * self.intra_rate, rows * (1 - self.intra_rate) / max(1, rows - 1)
            return torch.where(block, intra, inter) / len(everyone)
        block = own[:, None] == everyone[None]
        kinds = (block & (mine != at)).float(), (~block).float()
        nums = [kind.sum(1, keepdim=True) for kind in kinds]
        shares = self.intra_rate, 1 - self.intra_rate
        parts = [s * (n > 0) for s, n in zip(shares, nums, strict=True)]
        whole = (parts[0] + parts[1]).clamp(min=1e-12)
        return sum(
            (kind * part / whole / n.clamp(min=1) for kind, part, n in zip(kinds, parts, nums, strict=True)),
            torch.zeros_like(kinds[0]),
        )
