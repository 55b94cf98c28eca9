"""Prediction of masked words. Devlin et al. 2019, https://arxiv.org/abs/1810.04805."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from vlpipe.models.interface.batch import IGNORE, Batch
from vlpipe.models.interface.capabilities import FillsWords
from vlpipe.models.interface.objective import Objective, Term
from vlpipe.models.interface.outputs import Outputs


class MaskedLm(Objective):
    """`mlm`: cross entropy per masked word, in nats; `mlm_accuracy` is a diagnostic.

    Its view needs the corruptor `mask_text` for the stream `stream`. matched_only: leave out rows that the view's `mismatch`
    paired wrongly (ViLBERT, Unicoder-VL).
    """

    LOSSES = ("mlm",)
    NEEDS = (FillsWords,)

    def __init__(self, *, stream: str = "text", matched_only: bool = False) -> None:
        super().__init__()
        self.stream, self.matched_only = stream, matched_only

    def _targets(self, batch: Batch) -> Tensor:
        targets = batch.stream(self.stream).target["ids"]
        if self.matched_only:
            targets = targets.masked_fill(match_labels(batch)[:, None] == 0, IGNORE)
        return targets

    def counts(self, batch: Batch) -> Mapping[str, Tensor | float]:
        return {"mlm": (self._targets(batch) != IGNORE).sum()}

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        targets = self._targets(out.batch)
        masked = targets != IGNORE
        logits = out.model.predict_words(out.word_hidden[masked]).float()
        total = F.cross_entropy(logits, targets[masked], reduction="sum")
        right = (logits.argmax(1) == targets[masked]).sum().float()
        return {"mlm": Term(total, masked.sum()), "mlm_accuracy": Term(right, masked.sum())}


def match_labels(batch: Batch) -> Tensor:
    """Returns (B,) int64: 1 for rows whose streams belong together, as the corruptor `mismatch` recorded in one of them."""
    for stream in batch.streams.values():
        if "match" in stream.target:
            return stream.target["match"]
    raise ValueError("this view has no corruptor `mismatch`, so there is nothing to match")
