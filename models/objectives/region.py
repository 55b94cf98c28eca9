"""Prediction of masked regions: their feature, and the object and attribute class that the detector gave them.

Tan and Bansal 2019 (LXMERT), https://arxiv.org/abs/1908.07490.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vlpipe.models.interface.batch import Batch, Stream
from vlpipe.models.interface.capabilities import PredictsRegions
from vlpipe.models.interface.objective import Objective, Term
from vlpipe.models.interface.outputs import Outputs

LXMERT_RATE = 0.15


class RegionLoss(Objective):
    """Base class of losses on regions. Their view needs the corruptor `mask_regions` for the stream `stream`.

    divide_by: what the sum is divided by. "masked": the number of masked regions. "all": `rate` times the number of all
    regions, which is what LXMERT's code does (its 1 / 0.15) and equals "masked" on average.
    """

    NEEDS = (PredictsRegions,)

    def __init__(
        self, *, divide_by: Literal["masked", "all"], rate: float = LXMERT_RATE, stream: str = "regions"
    ) -> None:
        super().__init__()
        if divide_by not in ("masked", "all"):
            raise ValueError(f"{type(self).__name__}: divide_by must be masked or all, got {divide_by!r}")
        self.divide_by, self.rate, self.stream = divide_by, rate, stream

    def bind(self, model: Any) -> None:
        kind = getattr(self, "which", "feat")
        if kind not in model.REGION_KINDS:
            raise ValueError(
                f"objectives: {type(self).__name__} needs a model that predicts {kind!r} of regions; {type(model).__name__} "
                f"predicts {', '.join(model.REGION_KINDS)}"
            )

    def counts(self, batch: Batch) -> Mapping[str, Tensor | float]:
        return {self.LOSSES[0]: self._count(batch.stream(self.stream))}

    def _count(self, regions: Stream) -> Tensor:
        if self.divide_by == "masked":
            return regions.target["masked"].sum()
        return self.rate * real(regions).sum()


class RegionFeatures(RegionLoss):
    """`region_feat`: smooth L1 between predicted and original feature, mean over its values, of masked regions."""

    LOSSES = ("region_feat",)

    def __init__(
        self,
        *,
        divide_by: Literal["masked", "all"] = "masked",
        rate: float = LXMERT_RATE,
        stream: str = "regions",
    ) -> None:
        super().__init__(divide_by=divide_by, rate=rate, stream=stream)

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        regions = out.stream(self.stream)
        places = regions.chosen("masked", regions.target["masked"])
        predicted = out.model.predict_regions(out.region_hidden.flatten(0, 1)[places], "feat").float()
        true = regions.target["feat"].flatten(0, 1)[places].float()
        each = F.smooth_l1_loss(predicted, true, reduction="none").mean(1)
        return {"region_feat": Term(each.sum(), self._count(regions))}


class RegionClass(RegionLoss):
    """`region_obj` or `region_attr`: cross entropy in nats to the detector's class, times its confidence.

    which: "obj" or "attr". regions: "all", as in LXMERT's code, or "masked" alone; divide_by follows it. A class of -1 is
    none, and has no loss. `region_obj_accuracy` (or attr), of masked regions, is a diagnostic.
    """

    def __init__(
        self,
        *,
        which: Literal["obj", "attr"],
        regions: Literal["all", "masked"] = "all",
        rate: float = LXMERT_RATE,
        stream: str = "regions",
    ) -> None:
        if which not in ("obj", "attr"):
            raise ValueError(f"RegionClass: which must be obj or attr, got {which!r}")
        super().__init__(divide_by=regions, rate=rate, stream=stream)
        self.which = which
        self.LOSSES = (f"region_{which}",)

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        regions = out.stream(self.stream)
        masked = regions.target["masked"]
        used = (
            regions.chosen("masked", masked)
            if self.divide_by == "masked"
            else regions.chosen("mask", real(regions))
        )
        logits = out.model.predict_regions(out.region_hidden.flatten(0, 1)[used], self.which).float()
        labels = regions.extra[self.which].flatten()[used]
        weight = regions.extra[f"{self.which}_conf"].flatten()[used]
        each = F.cross_entropy(logits, labels, reduction="none", ignore_index=-1) * weight
        counted = masked.flatten()[used] & (labels >= 0)
        right = ((logits.argmax(1) == labels) & counted).sum().float()
        name = self.LOSSES[0]
        return {
            name: Term(each.sum(), self._count(regions)),
            f"{name}_accuracy": Term(right, counted.sum()),
        }


def real(regions: Stream) -> Tensor:
    """Returns (B, R) bool: regions that are not padding."""
    if regions.mask is not None:
        return regions.mask
    return torch.ones(regions.data.shape[:2], dtype=torch.bool, device=regions.data.device)
