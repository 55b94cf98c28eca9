"""Masked region classes by the detector's distribution: UNITER's MRC-kl, ViLBERT's masked regions.

Chen et al. 2020, https://arxiv.org/abs/1909.11740; Lu et al. 2019, https://arxiv.org/abs/1908.02265.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vlpipe.models.interface.objective import Term
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.region import RegionLoss


class RegionKl(RegionLoss):
    """`region_kl`: KL(q || p) in nats of the detector's classes q and the model's p, of masked regions.

    The stream needs extra["prob"] (B, R, C + 1), the last for background: set `probs: true` for its maker. background: the
    model has C + 1 classes, its last is background; False: it has C, and the detector's others are rescaled to a sum of 1.
    over_classes: "sum", or "mean", which is UNITER's code and smaller by the number of classes. `region_kl_accuracy`, of the
    detector's likeliest class, is a diagnostic. Raises ValueError if probabilities or classes are not so.
    """

    LOSSES = ("region_kl",)
    which = "obj"

    def __init__(
        self,
        *,
        background: bool = True,
        over_classes: Literal["sum", "mean"] = "sum",
        stream: str = "regions",
        matched_only: bool = False,
    ) -> None:
        super().__init__(divide_by="masked", stream=stream, matched_only=matched_only)
        if over_classes not in ("sum", "mean"):
            raise ValueError(f"RegionKl: over_classes must be sum or mean, got {over_classes!r}")
        self.background, self.over_classes = background, over_classes

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        regions = out.stream(self.stream)
        places = self._places(out, "masked")
        if "prob" not in regions.extra:
            raise ValueError(
                f"RegionKl: the stream {self.stream!r} has no probabilities; set streams.{self.stream}.probs: true"
            )
        logits = out.model.predict_regions(out.region_hidden.flatten(0, 1)[places], self.which).float()
        wanted = self._wanted(regions.extra["prob"].flatten(0, 1)[places].float())
        if logits.shape != wanted.shape:
            raise ValueError(
                f"RegionKl: the detector has {wanted.shape[1]} classes{'' if self.background else ' without background'}, "
                f"but the model predicts {logits.shape[1]}"
            )
        each = (torch.xlogy(wanted, wanted) - wanted * logits.log_softmax(1)).sum(1)
        if self.over_classes == "mean":
            each = each / wanted.shape[1]
        right = (logits.argmax(1) == wanted.argmax(1)).sum().float()
        count = self._count(out.batch)
        return {"region_kl": Term(each.sum(), count), "region_kl_accuracy": Term(right, count)}

    def _wanted(self, prob: Tensor) -> Tensor:
        """Returns the detector's distributions, each of sum 1: as float16, what is stored is a little off."""
        found = prob if self.background else prob[:, :-1]
        return found / found.sum(1, keepdim=True).clamp(min=torch.finfo(torch.float16).tiny)
