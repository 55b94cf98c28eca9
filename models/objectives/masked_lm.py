"""Prediction of masked words. Devlin et al. 2019, https://arxiv.org/abs/1810.04805."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from vlpipe.models.interface.batch import IGNORE, Batch
from vlpipe.models.interface.capabilities import FillsWords
from vlpipe.models.interface.objective import Objective, Term
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.itc import ramped


class MaskedIds(Objective):
    """Base of losses on masked ids of one stream: cross entropy per masked id in nats, and the accuracy as a diagnostic.

    stream: the stream whose target[TARGET] a corruptor recorded. matched_only: leave out rows that the view's `mismatch`
    paired wrongly (ViLBERT, Unicoder-VL).
    """

    TARGET = "ids"

    def __init__(self, *, stream: str, matched_only: bool = False) -> None:
        super().__init__()
        self.stream, self.matched_only = stream, matched_only

    def logits(self, out: Outputs, places: Tensor) -> Tensor:
        """Returns the logits (M, V) of the masked positions; places: their flat indices (M,) in (B, L)."""
        raise NotImplementedError

    def total(self, out: Outputs, logits: Tensor, true: Tensor, places: Tensor) -> Tensor:
        """Returns the loss, summed over the masked positions, of logits (M, V) and true ids (M,), IGNORE for no loss."""
        return F.cross_entropy(logits, true, reduction="sum")

    def _targets(self, batch: Batch) -> Tensor:
        targets = batch.stream(self.stream).target[self.TARGET]
        if self.matched_only:
            targets = targets.masked_fill(match_labels(batch)[:, None] == 0, IGNORE)
        return targets

    def counts(self, batch: Batch) -> Mapping[str, Tensor | float]:
        return {self.LOSSES[0]: (self._targets(batch) != IGNORE).sum()}

    def predicted(self, out: Outputs) -> tuple[Tensor, Tensor]:
        places = self._places(out)
        return self.logits(out, places).float(), self._targets(out.batch).flatten()[places] != IGNORE

    def _places(self, out: Outputs) -> Tensor:
        """Returns the flat indices of the masked positions of all rows. The loss excludes rows that do not match; to
        leave out their positions here, the CPU would have to wait for the GPU.
        """
        stream = out.stream(self.stream)
        return stream.chosen(self.TARGET, stream.target[self.TARGET] != IGNORE)

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        (name,), targets = self.LOSSES, self._targets(out.batch)
        masked, places = targets != IGNORE, self._places(out)
        logits, true = self.logits(out, places).float(), targets.flatten()[places]
        total = self.total(out, logits, true, places)
        right = (logits.argmax(1) == true).sum().float()
        return {name: Term(total, masked.sum()), f"{name}_accuracy": Term(right, masked.sum())}


class MaskedLm(MaskedIds):
    """`mlm` and `mlm_accuracy`: masked words. Its view needs the corruptor `mask_text`; see `MaskedIds`."""

    LOSSES = ("mlm",)
    NEEDS = (FillsWords,)

    def __init__(self, *, stream: str = "text", matched_only: bool = False) -> None:
        super().__init__(stream=stream, matched_only=matched_only)

    def logits(self, out: Outputs, places: Tensor) -> Tensor:
        found: Tensor = out.model.predict_words(out.word_hidden.flatten(0, 1)[places])
        return found


class DistilledMaskedLm(MaskedLm):
    """`mlm` and `mlm_accuracy`: masked words, whose targets are in part a momentum teacher's predictions from the same view.

    Li et al. 2021 (ALBEF), https://arxiv.org/abs/2107.07651, equation 7: per masked word, (1 - alpha) x cross entropy of the
    true word + alpha x KL(teacher || student); alpha grows to its value over the first epoch. kl: False counts the cross
    entropy with the teacher's predictions, as the released code does; the gradient is the same. teacher, momentum,
    teacher_dropout: as in `Itc`.
    """

    def __init__(
        self,
        *,
        stream: str = "text",
        matched_only: bool = False,
        alpha: float = 0.4,
        alpha_ramp_epochs: float = 1.0,
        kl: bool = True,
        teacher: str = "ema",
        momentum: float = 0.995,
        teacher_dropout: bool = True,
    ) -> None:
        super().__init__(stream=stream, matched_only=matched_only)
        self.alpha, self.alpha_ramp_epochs, self.kl, self.teacher = alpha, alpha_ramp_epochs, kl, teacher
        self.TEACHER = {"momentum": momentum, "dropout": teacher_dropout}
        self.FEATURES = (f"{teacher}.word_hidden",)  # by which a recipe's missing teacher is made

    def total(self, out: Outputs, logits: Tensor, true: Tensor, places: Tensor) -> Tensor:
        teacher = out.teacher(self.teacher)
        with torch.no_grad():
            soft = self.logits(teacher, places).float().softmax(1)
        each = F.cross_entropy(logits, soft, reduction="none")
        if self.kl:
            each = each - torch.special.entr(soft).sum(1)
        distilled = (each * (true != IGNORE)).sum()
        alpha = ramped(self.alpha, self.alpha_ramp_epochs, out.batch.step.progress)
        return (1 - alpha) * super().total(out, logits, true, places) + alpha * distilled


def match_labels(batch: Batch) -> Tensor:
    """Returns (B,) int64: 1 for rows whose streams belong together, as the corruptor `mismatch` recorded in one of them."""
    for stream in batch.streams.values():
        if "match" in stream.target:
            return stream.target["match"]
    raise ValueError("this view has no corruptor `mismatch`, so there is nothing to match")
