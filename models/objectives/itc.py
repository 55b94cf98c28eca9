"""Image-text contrast with a momentum teacher and queues (ALBEF, BLIP).

Li et al. 2021 (ALBEF), https://arxiv.org/abs/2107.07651; Li et al. 2022 (BLIP), https://arxiv.org/abs/2201.12086.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vlpipe.models import distributed
from vlpipe.models.interface.capabilities import EmbedsImages, EmbedsTexts, HasTemperature
from vlpipe.models.interface.objective import Objective, Scope, Term
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.queue import Queue


class Itc(Objective):
    """`itc`: soft-target cross entropy in nats, mean of both directions; `temp` is a diagnostic.

    Defaults are BLIP's: queue 57,600, alpha 0.4 ramped over 2 epochs (its finetuning: 1). teacher: name of the momentum
    teacher in the recipe's `teachers`; without one there, it is made with `momentum` and `teacher_dropout`. temp: a fixed
    temperature; None, as in BLIP: learned (at lr 1e-3 a small model took it from 0.07 to 0.008 within 332 steps).
    share: rows of the same picture share the mass of the target (BLIP's finetuning); False: all of it is the row's own
    partner's (ALBEF's paper). kl: soft targets count by their KL divergence (ALBEF's equation 6), not by their cross
    entropy, as in the code of both; the gradient is the same.
    """

    LOSSES = ("itc",)
    NEEDS = (EmbedsImages, EmbedsTexts, HasTemperature)
    SCOPE: Scope = "batch"

    def __init__(
        self,
        *,
        queue_size: int = 57600,
        alpha: float = 0.4,
        alpha_ramp_epochs: float = 2.0,
        temp: float | None = None,
        teacher: str = "ema",
        momentum: float = 0.995,
        teacher_dropout: bool = True,
        share: bool = True,
        kl: bool = False,
    ) -> None:
        super().__init__()
        self.share, self.kl = share, kl
        self.TEACHER = {"momentum": momentum, "dropout": teacher_dropout}
        self.queue_size, self.teacher = queue_size, teacher
        self.alpha, self.alpha_ramp_epochs = alpha, alpha_ramp_epochs
        self.temp = temp
        self.FEATURES = ("image_feat", "text_feat", f"{teacher}.image_feat", f"{teacher}.text_feat")

    def bind(self, model: Any) -> None:
        if self.temp is not None:
            with torch.no_grad():
                model.temp.fill_(self.temp)
            model.temp.requires_grad_(False)
        self.queue = Queue(self.queue_size, model.embed_dim, ("image", "text"), model.temp.device)

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        temp, own = out.model.temp, out.batch.same
        teacher = out.teacher(self.teacher)
        new = [distributed.gather(x) for x in (teacher.image_feat, teacher.text_feat)]
        new_ids = distributed.gather(own)
        queued, queued_ids = self.queue.rows()
        images, texts = (torch.cat([x, q]) for x, q in zip(new, queued, strict=True))
        ids = torch.cat([new_ids, queued_ids])
        losses = contrast(
            (out.image_feat, out.text_feat),
            (teacher.image_feat, teacher.text_feat),
            (images, texts),
            same_id(own, ids) if self.share else one_hot(own, len(ids)),
            temp,
            self._alpha(out.batch.step.progress),
            self.kl,
        )
        if self.training:
            self.queue.push(new, new_ids)
        return {"itc": Term(losses.sum(), len(losses)), "temp": temp.detach().clone()}

    def _alpha(self, progress: float) -> float:
        return ramped(self.alpha, self.alpha_ramp_epochs, progress)


def ramped(alpha: float, epochs: float, progress: float) -> float:
    """Returns the weight of soft targets after `progress` epochs: it grows linearly to `alpha` over the first `epochs`."""
    return alpha if epochs <= 0 else alpha * min(1.0, progress / epochs)


def contrast(
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    candidates: tuple[Tensor, Tensor],
    positives: Tensor,
    temp: Tensor,
    alpha: float,
    kl: bool = False,
) -> Tensor:
    """Returns each row's cross entropy (B,) against alpha x teacher + (1 - alpha) x positives, mean of both directions.

    Features are (image, text) pairs of unit norm: student and teacher (B, E), candidates (K, E). positives: (B, K) bool, at
    least one per row; they share the mass. The teacher's similarities use the student's temperature (BLIP, ALBEF). kl: less
    alpha x the entropy of the teacher's part.
    """
    hard = positives.float() / positives.sum(1, keepdim=True)
    total = torch.zeros(len(positives), device=temp.device)
    with torch.autocast(temp.device.type, enabled=False):  # fp32: a small temperature magnifies rounding
        for own, own_m, others in zip(student, teacher, reversed(candidates), strict=True):
            targets, others = hard, others.float()
            if alpha > 0:
                soft = (own_m.float() @ others.t() / temp.detach()).softmax(1)
                targets = alpha * soft + (1 - alpha) * hard
                if kl:
                    total = total - alpha * torch.special.entr(soft).sum(1)
            logprobs = (own.float() @ others.t() / temp).log_softmax(1)
            total = total - (logprobs * targets).sum(1)
    return total / 2


def same_id(rows: Tensor, columns: Tensor) -> Tensor:
    """Returns which row has the id of which column, (B, K) bool."""
    return rows[:, None] == columns[None, :]


def one_hot(rows: Tensor, num: int) -> Tensor:
    """Returns (B, num) bool: which of `num` candidates is each row's own; those of all ranks come first, in rank order."""
    first = distributed.rank() * len(rows)
    own = torch.arange(first, first + len(rows), device=rows.device)
    return own[:, None] == torch.arange(num, device=rows.device)[None, :]
