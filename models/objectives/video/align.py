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

    Rows of one clip each. chunk: texts whose pairs are computed together; it changes no value. Its view is the clean one;
    the released code aligns masked words and frames, as `view` of masked streams does. `align_accuracy` is a diagnostic.
    """

    LOSSES = ("align",)
    NEEDS = (ScoresPairs,)
    SCOPE: Scope = "rank"

    def __init__(self, *, chunk: int = 5) -> None:
        super().__init__()
        self.chunk = chunk

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        scores = all_pair_scores(out, self.chunk)
        at = torch.arange(len(scores), device=scores.device)
        logprobs = scores.log_softmax(1)
        right = (scores.argmax(1) == at).sum().float()
        return {
            "align": Term(-logprobs.diagonal().sum(), len(scores)),
            "align_accuracy": Term(right, len(scores)),
        }


def all_pair_scores(out: Outputs, chunk: int) -> Tensor:
    """Returns the scores (B, B) in float32 of each text with each clip of the batch, `chunk` texts at a time."""
    num = len(out)
    at = torch.arange(num, device=out.batch.same.device)
    scores = []
    for texts in at.split(chunk):
        pairs = {"text": texts.repeat_interleave(num), "video": at.repeat(len(texts))}
        scores.append(out.paired(pairs).pair_score.view(len(texts), num))
    return torch.cat(scores).float()
