"""CMC's contrast of a view with a bank of the other view's vectors. Tian et al. 2019, https://arxiv.org/abs/1906.05849.

Noise-contrastive estimation with a memory bank is that of Wu et al. 2018, https://arxiv.org/abs/1805.01978.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlpipe.models import distributed
from vlpipe.models.interface.objective import Objective, Scope, Term
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.interface.pretext_capabilities import EmbedsRows
from vlpipe.models.objectives.images.first import first_alone

EPSILON = 1e-7  # of the authors' code


class MemoryBank(Objective):
    """`memory_bank`: in nats, that the bank's vector of the other view is told from those of `num_negatives` random rows.

    The sum of both directions; `memory_bank_accuracy` is a diagnostic. kind: "nce", each vector by itself, against noise
    (equation 12 of the paper), with a normalisation constant that the first step estimates and later ones keep; "softmax",
    cross entropy among all (equation 2). momentum: of the bank's vectors, which follow those of the step after the loss.
    A random row may be the right one, as in the authors' code. The stream `row` has the rows' numbers.
    """

    LOSSES = ("memory_bank",)
    NEEDS = (EmbedsRows,)
    SCOPE: Scope = "batch"
    FEATURES = ("view_feats",)
    bank: Tensor
    constant: Tensor

    def __init__(
        self,
        *,
        num_negatives: int = 16384,
        temp: float = 0.07,
        momentum: float = 0.5,
        kind: str = "nce",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if num_negatives < 1 or temp <= 0 or not 0 <= momentum < 1 or kind not in ("nce", "softmax"):
            raise ValueError(
                "objectives: num_negatives must be at least 1, temp above 0, momentum from 0 and below 1, kind nce or "
                f"softmax; got {num_negatives}, {temp}, {momentum}, {kind!r}"
            )
        self.num_negatives, self.temp, self.momentum = num_negatives, temp, momentum
        self.kind, self.seed = kind, seed

    def bind(self, model: Any) -> None:
        device, width = next(model.parameters()).device, model.projection_dim
        most = math.sqrt(3 / width)
        draw = torch.empty(2, model.num_rows, width, device=device).uniform_(-most, most)
        self.register_buffer("bank", draw)
        self.register_buffer("constant", torch.full((2,), -1.0, device=device))

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        feats, rows = out.view_feats.float(), out.stream("row").data
        with torch.autocast(feats.device.type, enabled=False):
            chosen = self._candidates(rows, out.batch.step.number)  # (B, 1 + K), the right one first
            total, right = feats.new_zeros(()), feats.new_zeros(())
            for view in (0, 1):
                others = self.bank[1 - view][
                    chosen
                ]  # (B, 1 + K, E), a copy: the bank changes before the backward pass
                scores = torch.einsum("bke,be->bk", others, feats[:, view]) / self.temp
                total = total + (self._nce(scores, view) if self.kind == "nce" else _softmax(scores))
                right = right + first_alone(scores, chosen[:, 1:] == rows[:, None]).sum()
        if self.training:
            self._follow(distributed.gather(feats), distributed.gather(rows))
        return {"memory_bank": Term(total, len(out)), "memory_bank_accuracy": Term(right / 2, len(out))}

    def _candidates(self, rows: Tensor, step: int) -> Tensor:
        """Draws for the rows of all ranks, so that W ranks draw what one would."""
        draw = torch.Generator(rows.device).manual_seed((self.seed << 32) + step)
        world, num = distributed.world_size(), len(rows)
        shape = (world * num, self.num_negatives)
        every = torch.randint(self.bank.shape[1], shape, generator=draw, device=rows.device)
        first = distributed.rank() * num
        return torch.cat([rows[:, None], every[first : first + num]], dim=1)

    def _nce(self, scores: Tensor, view: int) -> Tensor:
        weights = scores.exp()
        num_rows = self.bank.shape[1]
        mean = distributed.total(weights.detach().mean()) / distributed.world_size()
        known = self.constant[view]
        constant = torch.where(known < 0, mean * num_rows, known)
        if self.training:
            self.constant[view] = constant
        likely = weights / constant
        noise = self.num_negatives / num_rows
        own = (likely[:, 0] / (likely[:, 0] + noise + EPSILON)).log()
        others = (noise / (likely[:, 1:] + noise + EPSILON)).log()
        return -own.sum() - others.sum()

    @torch.no_grad()
    def _follow(self, feats: Tensor, rows: Tensor) -> None:
        for view in (0, 1):
            moved = self.momentum * self.bank[view][rows] + (1 - self.momentum) * feats[:, view]
            self.bank[view].index_copy_(0, rows, F.normalize(moved, dim=1))


def _softmax(scores: Tensor) -> Tensor:
    return F.cross_entropy(scores, scores.new_zeros(len(scores), dtype=torch.long), reduction="sum")
