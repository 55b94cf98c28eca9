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
from vlpipe.models.objectives.masked_lm import match_labels

LXMERT_RATE = 0.15


class RegionLoss(Objective):
    """Base class of losses on regions. Their view needs the corruptor `mask_regions` for the stream `stream`.

    divide_by: what the sum is divided by. "masked": the number of masked regions. "all": `rate` times the number of all
    regions, which is what LXMERT's code does (its 1 / 0.15) and equals "masked" on average. matched_only: leave out rows
    that the view's `mismatch` paired wrongly (ViLBERT, Unicoder-VL, ImageBERT, InterBERT).
    """

    NEEDS = (PredictsRegions,)

    def __init__(
        self,
        *,
        divide_by: Literal["masked", "all"],
        rate: float = LXMERT_RATE,
        stream: str = "regions",
        matched_only: bool = False,
    ) -> None:
        super().__init__()
        if divide_by not in ("masked", "all"):
            raise ValueError(f"{type(self).__name__}: divide_by must be masked or all, got {divide_by!r}")
        self.divide_by, self.rate, self.stream = divide_by, rate, stream
        self.matched_only = matched_only

    def bind(self, model: Any) -> None:
        kind = getattr(self, "which", "feat")
        if kind not in model.REGION_KINDS:
            raise ValueError(
                f"objectives: {type(self).__name__} needs a model that predicts {kind!r} of regions; {type(model).__name__} "
                f"predicts {', '.join(model.REGION_KINDS)}"
            )

    def counts(self, batch: Batch) -> Mapping[str, Tensor | float]:
        return {self.LOSSES[0]: self._count(batch)}

    def _count(self, batch: Batch) -> Tensor:
        if self.divide_by == "masked":
            return self._chosen(batch, "masked").sum()
        return self.rate * self._chosen(batch, "mask").sum()

    def _chosen(self, batch: Batch, name: str) -> Tensor:
        """Returns (B, R) bool: the masked ("masked") or all real ("mask") regions of the rows that count."""
        regions = batch.stream(self.stream)
        found = regions.target["masked"] if name == "masked" else real(regions)
        return found & (match_labels(batch) == 1)[:, None] if self.matched_only else found

    def _places(self, out: Outputs, name: str) -> tuple[Tensor, Tensor | None]:
        """Returns flat indices (M,) of the masked or all real regions, and which of these count, (M,) bool or None for all.

        Excluded regions are computed too: to leave them out, the CPU would have to wait for the GPU.
        """
        regions = out.stream(self.stream)
        every = regions.target["masked"] if name == "masked" else real(regions)
        places = regions.chosen(name, every)
        return places, self._chosen(out.batch, name).flatten()[places] if self.matched_only else None


def counted(each: Tensor, which: Tensor | None) -> Tensor:
    """Returns values (M,) with those that do not count, False in `which` (M,), set to 0."""
    return each if which is None else each * which


class RegionFeatures(RegionLoss):
    """`region_feat`: smooth L1 between predicted and original feature, mean over its values, of masked regions."""

    LOSSES = ("region_feat",)

    def __init__(
        self,
        *,
        divide_by: Literal["masked", "all"] = "masked",
        rate: float = LXMERT_RATE,
        stream: str = "regions",
        matched_only: bool = False,
    ) -> None:
        super().__init__(divide_by=divide_by, rate=rate, stream=stream, matched_only=matched_only)

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        regions = out.stream(self.stream)
        places, which = self._places(out, "masked")
        predicted = out.model.predict_regions(out.region_hidden.flatten(0, 1)[places], "feat").float()
        true = regions.target["feat"].flatten(0, 1)[places].float()
        each = F.smooth_l1_loss(predicted, true, reduction="none").mean(1)
        return {"region_feat": Term(counted(each, which).sum(), self._count(out.batch))}


class RegionClass(RegionLoss):
    """`region_obj` or `region_attr`: cross entropy in nats to the detector's class, times its confidence.

    which: "obj" or "attr". regions: "all", as in LXMERT's code, or "masked" alone; divide_by follows it. confidence: False
    leaves its factor out (Unicoder-VL, ImageBERT). A class of -1 is none, and has no loss. `region_obj_accuracy` (or attr),
    of masked regions, is a diagnostic.
    """

    def __init__(
        self,
        *,
        which: Literal["obj", "attr"],
        regions: Literal["all", "masked"] = "all",
        rate: float = LXMERT_RATE,
        confidence: bool = True,
        stream: str = "regions",
        matched_only: bool = False,
    ) -> None:
        if which not in ("obj", "attr"):
            raise ValueError(f"RegionClass: which must be obj or attr, got {which!r}")
        super().__init__(divide_by=regions, rate=rate, stream=stream, matched_only=matched_only)
        self.which, self.confidence = which, confidence
        self.LOSSES = (f"region_{which}",)

    def predicted(self, out: Outputs) -> tuple[Tensor, Tensor]:
        used, which = self._places(out, "masked" if self.divide_by == "masked" else "mask")
        logits = out.model.predict_regions(out.region_hidden.flatten(0, 1)[used], self.which).float()
        return logits, counted(out.stream(self.stream).extra[self.which].flatten()[used] >= 0, which)

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        regions = out.stream(self.stream)
        masked = regions.target["masked"]
        used, which = self._places(out, "masked" if self.divide_by == "masked" else "mask")
        logits = out.model.predict_regions(out.region_hidden.flatten(0, 1)[used], self.which).float()
        labels = regions.extra[self.which].flatten()[used]
        each = F.cross_entropy(logits, labels, reduction="none", ignore_index=-1)
        if self.confidence:
            each = each * regions.extra[f"{self.which}_conf"].flatten()[used]
        judged = counted(masked.flatten()[used] & (labels >= 0), which)
        right = ((logits.argmax(1) == labels) & judged).sum().float()
        name = self.LOSSES[0]
        return {
            name: Term(counted(each, which).sum(), self._count(out.batch)),
            f"{name}_accuracy": Term(right, judged.sum()),
        }


def real(regions: Stream) -> Tensor:
    """Returns (B, R) bool: regions that are not padding."""
    if regions.mask is not None:
        return regions.mask
    return torch.ones(regions.data.shape[:2], dtype=torch.bool, device=regions.data.device)
