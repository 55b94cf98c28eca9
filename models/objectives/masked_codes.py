"""Prediction of masked codes: VideoBERT's video tokens. Sun et al. 2019, https://arxiv.org/abs/1904.01766."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from vlpipe.models.interface.batch import IGNORE, Batch
from vlpipe.models.interface.capabilities import FillsCodes
from vlpipe.models.interface.objective import Objective, Term
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.masked_lm import match_labels


class MaskedCodes(Objective):
    """`mfm`: cross entropy per masked code, in nats; `mfm_accuracy` is a diagnostic.

    Its view needs the corruptor `mask_codes` for the stream `stream`. matched_only: leave out rows that
    the view's `mismatch` paired wrongly.
    """

    LOSSES = ("mfm",)
    NEEDS = (FillsCodes,)

    def __init__(self, *, stream: str = "video", matched_only: bool = False) -> None:
        super().__init__()
        self.stream, self.matched_only = stream, matched_only

    def _targets(self, batch: Batch) -> Tensor:
        targets = batch.stream(self.stream).target["ids"]
        if self.matched_only:
            targets = targets.masked_fill(match_labels(batch)[:, None] == 0, IGNORE)
        return targets

    def counts(self, batch: Batch) -> Mapping[str, Tensor | float]:
        return {"mfm": (self._targets(batch) != IGNORE).sum()}

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        targets = self._targets(out.batch)
        masked = targets != IGNORE
        logits = out.model.predict_codes(out.code_hidden[masked]).float()
        total = F.cross_entropy(logits, targets[masked], reduction="sum")
        right = (logits.argmax(1) == targets[masked]).sum().float()
        return {"mfm": Term(total, masked.sum()), "mfm_accuracy": Term(right, masked.sum())}
