"""UniVL's joint loss: MIL-NCE in which the texts of neighbouring clips are the positives of a clip.

Luo et al. 2020, https://arxiv.org/abs/2002.06353, equation 1; https://github.com/microsoft/UniVL `until_module.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlpipe.models import distributed
from vlpipe.models.interface.objective import Objective, Scope, Term
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.interface.video_capabilities import ScoresNarration
from vlpipe.models.objectives.video.mil_nce import NOT_THERE


class JointMil(Objective):
    """`joint`: per clip, -log of the share of its row's N texts in the exponentials of scores, in nats.

    The others are the clip with the texts of other rows, and its text with the clips of other rows, on all ranks; positives
    are counted once. as_released: of each row only clip N // 2 counts. Scores are dot products.
    """

    LOSSES = ("joint",)
    NEEDS = (ScoresNarration,)
    SCOPE: Scope = "batch"
    FEATURES = ("clip_feat", "narration_feat")

    def __init__(self, *, as_released: bool = False) -> None:
        super().__init__()
        self.as_released = as_released

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        per_row = out.clip_feat.shape[1]
        clips, texts = out.clip_feat.flatten(0, 1).float(), out.narration_feat[:, :, 0].flatten(0, 1).float()
        all_clips, all_texts = distributed.gather_with_grad(clips), distributed.gather_with_grad(texts)
        with torch.autocast(clips.device.type, enabled=False):
            first = distributed.rank() * len(clips)
            own = (first + torch.arange(len(clips), device=clips.device)) // per_row
            same = own[:, None] == (torch.arange(len(all_clips), device=clips.device) // per_row)[None]
            to_texts = clips @ all_texts.t()
            to_clips = (texts @ all_clips.t()).masked_fill(same, NOT_THERE)
            good = to_texts.masked_fill(~same, NOT_THERE).logsumexp(1)
            losses = torch.cat([to_texts, to_clips], dim=1).logsumexp(1) - good
        losses = losses.unflatten(0, (-1, per_row))
        of_row = losses[:, per_row // 2] if self.as_released else losses.mean(1)
        return {"joint": Term(of_row.sum(), len(out))}
