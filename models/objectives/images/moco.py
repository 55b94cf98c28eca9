"""MoCo's contrasts: with a queue of keys (He et al. 2020, https://arxiv.org/abs/1911.05722), and within the batch, in both
directions (version 3: Chen et al. 2021, https://arxiv.org/abs/2104.02057).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlpipe.models import distributed
from vlpipe.models.interface.image_capabilities import EmbedsQueries, PredictsViews
from vlpipe.models.interface.objective import Objective, Scope, Term
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.images.first import first_alone
from vlpipe.models.queue import Queue


class Moco(Objective):
    """`moco`: cross entropy in nats of a query's own key among it and those of the queue; `moco_accuracy` is a diagnostic.

    Each step, the teacher follows the model, computes keys, the loss is taken, and the keys of all ranks enter the queue.
    Defaults are version 1's; version 2 has temp 0.2. teacher: its name in the recipe's `teachers`; without one there, it is
    made with `momentum`. random_start: the queue begins full of random vectors, as in the released code; without it, the
    first steps have fewer candidates, and the first none.
    """

    LOSSES = ("moco",)
    NEEDS = (EmbedsQueries,)
    SCOPE: Scope = "batch"

    def __init__(
        self,
        *,
        queue_size: int = 65536,
        temp: float = 0.07,
        teacher: str = "ema",
        momentum: float = 0.999,
        random_start: bool = False,
    ) -> None:
        super().__init__()
        if temp <= 0 or queue_size < 1:
            raise ValueError(
                f"objectives: temp must be above 0 and queue_size at least 1, got {temp}, {queue_size}"
            )
        self.queue_size, self.temp, self.teacher, self.random_start = queue_size, temp, teacher, random_start
        self.TEACHER = {"momentum": momentum}
        self.FEATURES = ("query", f"{teacher}.key")

    def bind(self, model: Any) -> None:
        device = next(model.parameters()).device
        self.queue = Queue(self.queue_size, model.projection_dim, ("key",), device)
        if self.random_start:
            keys = F.normalize(torch.randn(self.queue_size, model.projection_dim, device=device), dim=-1)
            self.queue.push([keys], torch.full((self.queue_size,), -1, device=device))

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        query, key = out.query.float(), out.teacher(self.teacher).key.float()
        (queued,), _ = self.queue.rows()
        with torch.autocast(query.device.type, enabled=False):  # fp32: a small temperature magnifies rounding
            own = (query * key).sum(1, keepdim=True)
            others = query @ queued.clone().t()  # the queue changes before the backward pass
            logits = torch.cat([own, others], dim=1) / self.temp
            total = F.cross_entropy(logits, logits.new_zeros(len(out), dtype=torch.long), reduction="sum")
        right = first_alone(logits).sum().float()
        if self.training:
            self.queue.push([distributed.gather(key)], distributed.gather(out.batch.same))
        return {"moco": Term(total, len(out)), "moco_accuracy": Term(right, len(out))}


class MocoV3(Objective):
    """`moco_v3`: cross entropy in nats of the key of an image's other view among those of all images of the step, times
    2 temp, sum of both directions; `moco_v3_accuracy` is a diagnostic.

    teacher: its name in the recipe's `teachers`; without one there, it is made with `momentum`. The paper's momentum rises
    to 1: `cosine_ema:CosineEma`.
    """

    LOSSES = ("moco_v3",)
    NEEDS = (PredictsViews,)
    SCOPE: Scope = "batch"

    def __init__(self, *, temp: float = 0.2, teacher: str = "ema", momentum: float = 0.99) -> None:
        super().__init__()
        if temp <= 0:
            raise ValueError(f"objectives: temp must be above 0, got {temp}")
        self.temp, self.teacher = temp, teacher
        self.TEACHER = {"momentum": momentum}
        self.FEATURES = ("queries", f"{teacher}.keys")

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        queries, num = out.queries.float(), len(out)
        keys = distributed.gather(out.teacher(self.teacher).keys.float())  # (N, 2, E)
        own = distributed.rank() * num + torch.arange(num, device=queries.device)
        total, right = queries.new_zeros(()), queries.new_zeros(())
        with torch.autocast(queries.device.type, enabled=False):
            for view in (0, 1):
                logits = queries[:, view] @ keys[:, 1 - view].t() / self.temp
                total = total + 2 * self.temp * F.cross_entropy(logits, own, reduction="sum")
                right = right + (logits.argmax(1) == own).sum()
        return {"moco_v3": Term(total, num), "moco_v3_accuracy": Term(right / 2, num)}
