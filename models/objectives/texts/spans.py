"""The span of a text that answers a question: SQuAD.

Devlin et al. 2019, https://arxiv.org/abs/1810.04805, sections 4.2 and 4.3.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from vlpipe.models.interface.batch import Batch
from vlpipe.models.interface.objective import Objective, Term
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.interface.text_capabilities import FindsSpans


class Span(Objective):
    """`span`: mean of the cross entropies in nats of the first and the last token; `span_accuracy`: share with both right.

    target["span"] (B, 2) of the stream `text`: the two positions; 0 and 0 without an answer (SQuAD 2.0). Padding has no
    probability.
    """

    LOSSES = ("span",)
    NEEDS = (FindsSpans,)

    def counts(self, batch: Batch) -> Mapping[str, Tensor | float]:
        return {"span": float(len(batch.stream("text")))}

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        text = out.stream("text")
        wanted, logits = text.target["span"], out.span_logits.float()
        if text.mask is not None:
            logits = logits.masked_fill(~text.mask[:, :, None], float("-inf"))
        total = F.cross_entropy(logits, wanted, reduction="sum") / 2
        right = (logits.argmax(1) == wanted).all(1).sum().float()
        return {"span": Term(total, len(wanted)), "span_accuracy": Term(right, len(wanted))}
