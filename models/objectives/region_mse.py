"""UNITER's masked region feature regression. Chen et al. 2020, https://arxiv.org/abs/1909.11740."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from vlpipe.models.interface.objective import Term
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.region import RegionLoss, counted


class RegionMse(RegionLoss):
    """`region_mse`: squared error between predicted and original feature, mean over its values, of masked regions.

    over_values: "mean" is UNITER's code; "sum" is the squared L2 distance of its paper, larger by the number of values.
    """

    LOSSES = ("region_mse",)

    def __init__(
        self,
        *,
        over_values: Literal["mean", "sum"] = "mean",
        stream: str = "regions",
        matched_only: bool = False,
    ) -> None:
        super().__init__(divide_by="masked", stream=stream, matched_only=matched_only)
        if over_values not in ("mean", "sum"):
            raise ValueError(f"RegionMse: over_values must be mean or sum, got {over_values!r}")
        self.over_values = over_values

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        regions = out.stream(self.stream)
        places, which = self._places(out, "masked")
        predicted = out.model.predict_regions(out.region_hidden.flatten(0, 1)[places], "feat").float()
        error = (predicted - regions.target["feat"].flatten(0, 1)[places].float()).square()
        each = error.mean(1) if self.over_values == "mean" else error.sum(1)
        return {"region_mse": Term(counted(each, which).sum(), self._count(out.batch))}
