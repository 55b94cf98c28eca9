"""UNITER's masked region feature regression. Chen et al. 2020, https://arxiv.org/abs/1909.11740."""

from __future__ import annotations

from torch import Tensor

from vlpipe.models.interface.objective import Term
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.region import RegionLoss


class RegionMse(RegionLoss):
    """`region_mse`: squared error between predicted and original feature, mean over its values, of masked regions.

    The paper has the squared L2 distance, a sum over values; its code takes the mean, as here.
    """

    LOSSES = ("region_mse",)

    def __init__(self, *, stream: str = "regions", matched_only: bool = False) -> None:
        super().__init__(divide_by="masked", stream=stream, matched_only=matched_only)

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        regions = out.stream(self.stream)
        places = self._places(out, "masked")
        predicted = out.model.predict_regions(out.region_hidden.flatten(0, 1)[places], "feat").float()
        each = (predicted - regions.target["feat"].flatten(0, 1)[places].float()).square().mean(1)
        return {"region_mse": Term(each.sum(), self._count(out.batch))}
