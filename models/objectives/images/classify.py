"""Classification of images. Dosovitskiy et al. 2021 (ViT), https://arxiv.org/abs/2010.11929."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vlpipe.models.interface.batch import IGNORE, Batch
from vlpipe.models.interface.image_capabilities import Classifies
from vlpipe.models.interface.objective import Objective, Term, classification
from vlpipe.models.interface.outputs import Outputs


class Classify(Objective):
    """`classify`: cross entropy in nats of the class, of rows that have a label; `classify_accuracy` is a diagnostic.

    stream: that of the labels (B,); IGNORE is no label.
    """

    LOSSES = ("classify",)
    NEEDS = (Classifies,)

    def __init__(self, *, stream: str = "label") -> None:
        super().__init__()
        self.stream = stream

    def counts(self, batch: Batch) -> Mapping[str, Tensor | float]:
        return {"classify": (batch.stream(self.stream).data != IGNORE).sum()}

    def predicted(self, out: Outputs) -> tuple[Tensor, Tensor]:
        return out.logits.float(), out.stream(self.stream).data != IGNORE

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        return classification("classify", out.logits.float(), out.stream(self.stream).data)
