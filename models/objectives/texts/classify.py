"""The class, or the score, of one or two texts: GLUE's tasks.

Devlin et al. 2019, https://arxiv.org/abs/1810.04805, section 4.1.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vlpipe.models.interface.batch import IGNORE, Batch
from vlpipe.models.interface.objective import Objective, Term, classification
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.interface.text_capabilities import ClassifiesTexts


class ClassifyTexts(Objective):
    """`classify`: cross entropy in nats of the class, of rows that have a label; `classify_accuracy` is a diagnostic.

    Of a model with one class: the squared error of its score (STS-B), without accuracy. The stream `label` has the labels
    (B,), IGNORE for none, or scores, NaN for none.
    """

    LOSSES = ("classify",)
    NEEDS = (ClassifiesTexts,)

    def counts(self, batch: Batch) -> Mapping[str, Tensor | float]:
        return {"classify": _has(batch.stream("label").data).sum()}

    def predicted(self, out: Outputs) -> tuple[Tensor, Tensor] | None:
        wanted, logits = out.stream("label").data, out.text_logits.float()
        return None if wanted.is_floating_point() else (logits, _has(wanted))

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        wanted, logits = out.stream("label").data, out.text_logits.float()
        counted = _has(wanted)
        if wanted.is_floating_point():
            squares = (logits[:, 0] - wanted.nan_to_num()).square().masked_fill(~counted, 0.0)
            return {"classify": Term(squares.sum(), counted.sum())}
        return classification("classify", logits, wanted)


def _has(wanted: Tensor) -> Tensor:
    return ~wanted.isnan() if wanted.is_floating_point() else wanted != IGNORE
