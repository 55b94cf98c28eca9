"""Question answering with soft scores. Teney et al. 2018, https://arxiv.org/abs/1708.02711."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vlpipe.models.interface.capabilities import Answers
from vlpipe.models.interface.objective import Objective, Term
from vlpipe.models.interface.outputs import Outputs


class SoftAnswer(Objective):
    """`answer`: binary cross entropy in nats of every answer with its score from 0 to 1, summed over answers, per question.

    That is the mean over answers times their number, as UNITER, LXMERT and ViLT weigh it. `answer_score`, a diagnostic: the
    score of the answer with the highest logit. stream: that of the scores (B, answers).
    """

    LOSSES = ("answer",)
    NEEDS = (Answers,)
    BINARY = True

    def __init__(self, *, stream: str = "answer") -> None:
        super().__init__()
        self.stream = stream

    def predicted(self, out: Outputs) -> tuple[Tensor, Tensor]:
        logits = out.answer.float()
        return logits, torch.ones(len(logits), dtype=torch.bool, device=logits.device)

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        scores, logits = out.stream(self.stream).data, out.answer.float()
        total = F.binary_cross_entropy_with_logits(logits, scores, reduction="sum")
        best = scores.gather(1, logits.argmax(1, keepdim=True)).sum()
        return {"answer": Term(total, len(scores)), "answer_score": Term(best, len(scores))}
