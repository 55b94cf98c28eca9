"""Question answering as classification. Tan and Bansal 2019 (LXMERT), https://arxiv.org/abs/1908.07490."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vlpipe.models.interface.batch import IGNORE, Batch
from vlpipe.models.interface.capabilities import Answers
from vlpipe.models.interface.objective import Objective, Term, classification
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.masked_lm import match_labels


class Answer(Objective):
    """`answer`: cross entropy in nats of the answer, of rows that have one; `answer_accuracy` is a diagnostic.

    stream: that of the labels (B,). Rows that the view's `mismatch`, if it has one, paired wrongly have no loss.
    """

    LOSSES = ("answer",)
    NEEDS = (Answers,)

    def __init__(self, *, stream: str = "answer") -> None:
        super().__init__()
        self.stream = stream

    def _labels(self, batch: Batch) -> Tensor:
        labels = batch.stream(self.stream).data
        if any("match" in stream.target for stream in batch.streams.values()):
            labels = labels.masked_fill(match_labels(batch) == 0, IGNORE)
        return labels

    def counts(self, batch: Batch) -> Mapping[str, Tensor | float]:
        return {"answer": (self._labels(batch) != IGNORE).sum()}

    def predicted(self, out: Outputs) -> tuple[Tensor, Tensor]:
        return out.answer.float(), self._labels(out.batch) != IGNORE

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        return classification("answer", out.answer.float(), self._labels(out.batch))
