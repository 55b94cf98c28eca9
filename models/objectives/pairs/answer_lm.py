"""Language modelling of the answers in conversations alone. Liu et al. 2023 (LLaVA), https://arxiv.org/abs/2304.08485."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from vlpipe.models.interface.batch import IGNORE, Batch
from vlpipe.models.interface.capabilities import PredictsNext
from vlpipe.models.interface.objective import Objective, Term
from vlpipe.models.interface.outputs import Outputs


class AnswerLm(Objective):
    """`lm`: cross entropy in nats per token that the stream `text` marks as learned (target["ids"]), each predicted from
    what is before it. `lm_accuracy` is a diagnostic.
    """

    LOSSES = ("lm",)
    NEEDS = (PredictsNext,)

    def counts(self, batch: Batch) -> Mapping[str, Tensor | float]:
        return {"lm": (batch.stream("text").target["ids"] != IGNORE).sum()}

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        text = out.stream("text")
        ids = text.target["ids"]
        learned = ids != IGNORE
        places = text.chosen("ids", learned)  # never position 0: nothing is before it
        logits = out.model.predict(out.decoder_hidden.flatten(0, 1)[places - 1]).float()
        true, num = ids.flatten()[places], learned.sum()
        right = (logits.argmax(1) == true).sum().float()
        total = F.cross_entropy(logits, true, reduction="sum")
        return {"lm": Term(total, num), "lm_accuracy": Term(right, num)}
