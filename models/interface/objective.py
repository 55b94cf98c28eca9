"""An objective: what is added to the loss of a training step, and what it needs of the model and the batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.interface.batch import IGNORE, Batch
from vlpipe.models.interface.outputs import Outputs

Scope = Literal["sample", "batch", "rank"]


@dataclass(frozen=True, slots=True)
class Term:
    """A loss or diagnostic of one micro-batch on one rank. Its mean is the sum of totals over the sum of counts, of all
    micro-batches and ranks.
    """

    total: Tensor  # scalar: the sum over the counted items
    count: Tensor | float  # how many items were summed; 0 is a mean of 0


def classification(name: str, logits: Tensor, labels: Tensor) -> dict[str, Term | Tensor]:
    """Returns `name`, the cross entropy in nats, and the diagnostic `name_accuracy`, of the items whose label is not IGNORE.

    logits: (B, C, ...); labels: (B, ...) int64.
    """
    counted = labels != IGNORE
    total = F.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORE)
    right = ((logits.argmax(1) == labels) & counted).sum().float()
    return {name: Term(total, counted.sum()), f"{name}_accuracy": Term(right, counted.sum())}


class Objective(nn.Module):
    """Base class of objectives. Subclasses name their losses and return them as sums; the trainer alone makes means.

    LOSSES: names of the losses; other names that `forward` returns are diagnostics, logged and not optimised.
    NEEDS: capabilities (Protocols of `capabilities`) that the model must have.
    SCOPE: what one row's loss depends on. "sample": that row alone, so micro-batches and ranks change nothing.
    "batch": all rows of the step, on all ranks (with accumulation, a gradient cache makes it exact). "rank": the rows that
    one rank forwards together; more ranks or micro-batches then mean fewer candidates per row.
    FEATURES: for scope "batch": outputs of shape (B, ...), from which alone the loss is computed; teachers' as
    "ema.image_feat".
    BINARY: whether the logits of `predicted` are of C independent answers, each yes or no, in place of one of C classes.
    TEACHER: parameters of the `Ema` that is made for it if the recipe's `teachers` do not have the one it names.
    view: the view of the batch that the objective looks at; "" for the clean streams.
    """

    LOSSES: tuple[str, ...] = ()
    NEEDS: ClassVar[tuple[type, ...]] = ()
    SCOPE: Scope = "sample"
    FEATURES: tuple[str, ...] = ()
    BINARY: ClassVar[bool] = False
    TEACHER: Mapping[str, Any] = MappingProxyType({})
    view: str = ""

    def bind(self, model: Any) -> None:
        """Called once with the model, before training and before a checkpoint is loaded: make parameters and buffers here.

        Raises ValueError if the objective does not fit the model.
        """

    def counts(self, batch: Batch) -> Mapping[str, Tensor | float]:
        """Returns the count of each loss that is not the number of rows, from the batch alone.

        It is asked before the forward pass when a step has several micro-batches. batch: see `view`.
        """
        return {}

    def predicted(self, out: Outputs) -> tuple[Tensor, Tensor] | None:
        """Returns the logits (M, C) that the loss is of, and which of the M items it counts, (M,) bool.

        None: the loss is of no distribution over classes. out: see `view`; BINARY.
        """
        return None

    def forward(self, out: Outputs) -> Mapping[str, Term | Tensor]:
        """Returns name -> Term of each loss and diagnostic, or a scalar that is the same for every row. out: see `view`."""
        raise NotImplementedError
