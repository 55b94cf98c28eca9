"""CBT's cross-modal loss: which text belongs to a clip, by a transformer that reads both.

Sun et al. 2019, https://arxiv.org/abs/1906.05743.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlpipe.models.interface.objective import Objective, Scope, Term
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.interface.video_capabilities import ScoresPairs
from vlpipe.models.objectives.video.align import all_pair_scores


class CrossNce(Objective):
    """`cross`: per clip, -log MI(clip, its text) / sum over the rank's texts of MI(clip, text), in nats; MI is the
    exponential of the pair's score.

    Clip and text belong together as a whole; no word is aligned with a window. Rows of one clip each. chunk: texts whose
    pairs are computed together; it changes no value. `cross_accuracy` is a diagnostic.
    """

    LOSSES = ("cross",)
    NEEDS = (ScoresPairs,)
    SCOPE: Scope = "rank"

    def __init__(self, *, chunk: int = 8) -> None:
        super().__init__()
        self.chunk = chunk

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        scores = all_pair_scores(out, self.chunk).t()  # clips, texts
        at = torch.arange(len(scores), device=scores.device)
        total = -scores.log_softmax(1).diagonal().sum()
        right = (scores.argmax(1) == at).sum().float()
        return {"cross": Term(total, len(scores)), "cross_accuracy": Term(right, len(scores))}
