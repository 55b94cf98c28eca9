"""UniVL's alignment: which clip a text belongs to, by a cross encoder over all pairs of a batch.

Luo et al. 2020, https://arxiv.org/abs/2002.06353, equation 4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlpipe.models.interface.objective import Objective, Scope, Term
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.interface.video_capabilities import ScoresPairs


class Align(Objective):
    """`align`: per text, -log softmax of the score of its own clip among those of all clips of the rank's batch, in nats.

    Rows of one clip each. chunk: texts whose pairs are computed together; it changes no value.
    """

    LOSSES = ("align",)
    NEEDS = (ScoresPairs,)
    SCOPE: Scope = "rank"

    def __init__(self, *, chunk: int = 5) -> None:
        super().__init__()
        self.chunk = chunk

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        num = len(out)
        at = torch.arange(num, device=out.batch.same.device)
        scores = []
        for texts in at.split(self.chunk):
            pairs = {"text": texts.repeat_interleave(num), "video": at.repeat(len(texts))}
            scores.append(out.paired(pairs).pair_score.view(len(texts), num))
        logprobs = torch.cat(scores).float().log_softmax(1)
        return {"align": Term(-logprobs.diagonal().sum(), num)}
