"""VL-BERT's masked region classification. Su et al. 2019, https://arxiv.org/abs/1908.08530, and its released code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vlpipe.models.interface.batch import Batch
from vlpipe.models.interface.objective import Term
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.region import RegionLoss

OFF = 0.1  # by which a detector's probabilities may miss a sum of 1


class SoftRegionClass(RegionLoss):
    """`region_soft`: -sum over classes of q log p in nats, of masked regions; q: the detector's probabilities as they are.

    The stream needs extra["prob"] (B, R, C): set `probs: true` for its maker. The model has as many classes. Regions whose
    probabilities do not sum to 1, within 0.1, are excluded. `region_soft_accuracy`, of the likeliest class, is a
    diagnostic. Raises ValueError if probabilities or classes are not so.
    """

    LOSSES = ("region_soft",)
    which = "obj"

    def __init__(self, *, stream: str = "regions") -> None:
        super().__init__(divide_by="masked", stream=stream)

    def counts(self, batch: Batch) -> Mapping[str, Tensor | float]:
        return {"region_soft": self._valid(batch).sum()}

    def _valid(self, batch: Batch) -> Tensor:
        regions = batch.stream(self.stream)
        if "prob" not in regions.extra:
            raise ValueError(
                f"SoftRegionClass: the stream {self.stream!r} has no probabilities; set streams.{self.stream}.probs: true"
            )
        is_sum = (regions.extra["prob"].float().sum(-1) - 1).abs() < OFF
        return regions.target["masked"] & is_sum

    def predicted(self, out: Outputs) -> tuple[Tensor, Tensor]:
        regions = out.stream(self.stream)
        places = regions.chosen("masked", regions.target["masked"])
        logits: Tensor = out.model.predict_regions(
            out.region_hidden.flatten(0, 1)[places], self.which
        ).float()
        return logits, self._valid(out.batch).flatten()[places]

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        regions = out.stream(self.stream)
        valid = self._valid(out.batch)
        places = regions.chosen("masked", regions.target["masked"])
        wanted = regions.extra["prob"].flatten(0, 1)[places].float()
        logits: Any = out.model.predict_regions(out.region_hidden.flatten(0, 1)[places], self.which).float()
        if logits.shape != wanted.shape:
            raise ValueError(
                f"SoftRegionClass: the detector has {wanted.shape[1]} classes with background, but the model predicts "
                f"{logits.shape[1]}"
            )
        counted = valid.flatten()[places]
        each = -(wanted * logits.log_softmax(1)).sum(1)
        right = (logits.argmax(1) == wanted.argmax(1)) & counted
        count = valid.sum()
        return {
            "region_soft": Term(torch.where(counted, each, 0.0).sum(), count),
            "region_soft_accuracy": Term(right.sum().float(), count),
        }
