"""The choice of one of several texts. Zellers et al. 2019 (VCR), https://arxiv.org/abs/1811.10830."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vlpipe.models.interface.batch import IGNORE, Batch
from vlpipe.models.interface.joint_capabilities import Chooses
from vlpipe.models.interface.objective import Objective, Term, classification
from vlpipe.models.interface.outputs import Outputs


class Choose(Objective):
    """`choice`: cross entropy in nats of the right one of a row's texts, softmax over them; `choice_accuracy`, a diagnostic.

    stream: that of the texts, whose target["label"] (B,) is the place of the right one; IGNORE for none.
    """

    LOSSES = ("choice",)
    NEEDS = (Chooses,)

    def __init__(self, *, stream: str = "choices") -> None:
        super().__init__()
        self.stream = stream

    def counts(self, batch: Batch) -> Mapping[str, Tensor | float]:
        return {"choice": (batch.stream(self.stream).target["label"] != IGNORE).sum()}

    def predicted(self, out: Outputs) -> tuple[Tensor, Tensor]:
        return out.choice_scores.float(), out.stream(self.stream).target["label"] != IGNORE

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        return classification("choice", out.choice_scores, out.stream(self.stream).target["label"])
