"""Image-text contrast with momentum encoders and an id-aware queue (BLIP; He et al. 2020 for the queue).

Differs from BLIP's code where that one is fragile: rows with the same `image_id` are positives of each
other (BLIP pretrains without ids), candidates are the momentum features of all ranks (BLIP: own rank +
queue), so W ranks equal one process; queue slots that were never filled do not exist (BLIP: random
vectors); the pointer wraps at any batch size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vlpipe.models import distributed
from vlpipe.models.features import Features


class Itc(nn.Module):
    """`itc`: mean soft-target cross entropy of both directions, in nats; `temp` is a diagnostic.

    Defaults are BLIP's: queue 57,600, momentum 0.995, alpha 0.4 ramped over 2 epochs (its finetuning: 1),
    teacher in training mode (dropout). temp: a fixed temperature; None, as in BLIP: learned from 0.07 on (at
    lr 1e-3 a small model took it to 0.008 within 332 steps). `image_id` (B,)
    int64: equal means the same picture. With `micro` in the batch (0, 1, ... within an optimiser step) the
    teacher follows once per step. State (teacher, queue) is in `state_dict`.
    """

    LOSSES: ClassVar[tuple[str, ...]] = ("itc",)
    queue_image: Tensor
    queue_text: Tensor
    queue_id: Tensor
    num_queued: Tensor

    def __init__(
        self,
        *,
        queue_size: int = 57600,
        momentum: float = 0.995,
        alpha: float = 0.4,
        alpha_ramp_epochs: float = 2.0,
        teacher_dropout: bool = True,
        temp: float | None = None,
    ) -> None:
        super().__init__()
        self.temp = temp
        self.queue_size, self.momentum = queue_size, momentum
        self.alpha, self.alpha_ramp_epochs = alpha, alpha_ramp_epochs
        self.teacher_dropout = teacher_dropout

    def bind(self, model: Any) -> None:
        """Make the momentum copy of `model` and an empty queue, on its device; call before loading a
        checkpoint.
        """
        if self.temp is not None:
            with torch.no_grad():
                model.temp.fill_(self.temp)
            model.temp.requires_grad_(False)
        self.teacher = model.unimodal_copy()
        shape = (self.queue_size, model.config.embed_dim)
        device = model.temp.device
        self.register_buffer("queue_image", torch.zeros(shape, device=device))
        self.register_buffer("queue_text", torch.zeros(shape, device=device))
        self.register_buffer("queue_id", torch.zeros(self.queue_size, dtype=torch.long, device=device))
        self.register_buffer("num_queued", torch.zeros((), dtype=torch.long, device=device))

    def train(self, mode: bool = True) -> Itc:
        super().train(mode)
        if hasattr(self, "teacher"):
            self.teacher.train(mode and self.teacher_dropout)
        return self

    def forward(self, model: Any, batch: Mapping[str, Any], features: Features) -> dict[str, Tensor]:
        with torch.no_grad():
            model.temp.clamp_(0.001, 0.5)
            if self.training and batch.get("micro", 0) == 0:
                update_teacher(self.teacher, model, self.momentum)
            image_m = self.teacher.embed_image(batch["pixels"])
            text_m = self.teacher.embed_text(features.input_ids, features.attention_mask)
            features.momentum = (image_m, text_m)
            new = [distributed.gather(x) for x in (image_m, text_m, batch["image_id"])]
            filled = min(int(self.num_queued), self.queue_size)
            queue = (self.queue_image, self.queue_text, self.queue_id)
            images, texts, ids = (torch.cat([x, q[:filled]]) for x, q in zip(new, queue, strict=True))
        loss = contrast(
            (features.image_feat, features.text_feat),
            (image_m, text_m),
            (images, texts),
            same_id(batch["image_id"], ids),
            model.temp,
            self._alpha(float(batch["progress"])),
        )
        if self.training:
            self._enqueue(*new)
        return {"itc": loss, "temp": model.temp.detach().clone()}

    def _alpha(self, progress: float) -> float:
        if self.alpha_ramp_epochs <= 0:
            return self.alpha
        return self.alpha * min(1.0, progress / self.alpha_ramp_epochs)

    @torch.no_grad()
    def _enqueue(self, image: Tensor, text: Tensor, ids: Tensor) -> None:
        """The oldest make room, the pointer wraps; of a batch larger than the queue the last rows stay."""
        total = int(self.num_queued) + len(ids)
        num_new = min(len(ids), self.queue_size)
        if num_new == 0:
            return
        at = torch.arange(total - num_new, total, device=ids.device) % self.queue_size
        for queue, rows in ((self.queue_image, image), (self.queue_text, text), (self.queue_id, ids)):
            queue[at] = rows[-num_new:].to(queue.dtype)
        self.num_queued.fill_(total)


def contrast(
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    candidates: tuple[Tensor, Tensor],
    positives: Tensor,
    temp: Tensor,
    alpha: float,
) -> Tensor:
    """Cross entropy against alpha x teacher + (1 - alpha) x positives, mean of image-to-text and
    text-to-image.

    Features are (image, text) pairs of unit norm: student and teacher (B, E), candidates (K, E); positives
    (B, K) 0/1, at least one per row, which share the mass. The teacher's similarities use the student's
    temperature (BLIP, ALBEF).
    """
    hard = positives.float() / positives.sum(1, keepdim=True)
    total = torch.zeros((), device=temp.device)
    with torch.autocast(temp.device.type, enabled=False):  # fp32: a small temperature magnifies rounding
        for own, own_m, others in zip(student, teacher, reversed(candidates), strict=True):
            targets = hard
            if alpha > 0:
                soft = (own_m @ others.t() / temp.detach()).softmax(1)
                targets = alpha * soft + (1 - alpha) * hard
            logprobs = (own @ others.t() / temp).log_softmax(1)
            total = total - (logprobs * targets).sum(1).mean()
    return total / 2


def same_id(rows: Tensor, columns: Tensor) -> Tensor:
    """(B, K) bool."""
    return rows[:, None] == columns[None, :]


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher = momentum x teacher + (1 - momentum) x student, in place, parameter by name."""
    own = dict(student.named_parameters())
    names, params = zip(*teacher.named_parameters(), strict=True)
    torch._foreach_lerp_(list(params), [own[name].detach() for name in names], 1 - momentum)
