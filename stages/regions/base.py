"""Base class of the two region stages: their columns and the checks of their parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.shard import need, with_field
from vlpipe.pipeline.stage import MapStage
from vlpipe.stages.common.region_rows import group_rows, region_fields

Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class RegionStage(MapStage):
    """Adds the columns of `region_fields` to rows with an `image`.

    feat_dim: width of a region's feature. num_classes: number of classes, without the "no object" class. The other
    parameters are explained in `RegionFeatures` and `HFRegionFeatures`.
    """

    READS_HEAVY: ClassVar[tuple[str, ...]] = ("image",)
    LOADS_WEIGHTS: ClassVar[bool] = True
    TORCH: ClassVar[bool] = True

    feat_dim: Annotated[int, Field(ge=1)]
    num_classes: Annotated[int, Field(ge=1)]
    min_regions: Annotated[int, Field(ge=0)]
    max_regions: Annotated[int, Field(ge=1)] = 100
    confidence: Share = 0.2
    tag_confidence: Share

    @property
    def ROW_GROUP_ROWS(self) -> int:  # type: ignore[override]
        return group_rows(self.feat_dim, self.num_classes + 1, self.max_regions)

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, type(self).__module__.rpartition("vlpipe.stages.")[2], id=pa.string(), image=pa.binary())
        for field in region_fields(self.feat_dim, self.num_classes + 1):
            inp = with_field(inp, field)
        return inp

    def preflight(self) -> list[str]:
        if self.min_regions <= self.max_regions:
            return []
        return [f"min_regions must be at most max_regions = {self.max_regions}, got {self.min_regions}"]

    def check_sizes(self, *, feat_dim: int, num_classes: int) -> None:
        """Raises VlpipeError if the loaded detector has another feature size or number of classes than the step sets."""
        for name, has in (("feat_dim", feat_dim), ("num_classes", num_classes)):
            if has != getattr(self, name):
                raise VlpipeError(
                    f"the detector has {name} {has}, but the step sets {name}: {getattr(self, name)}; set {name}: {has}"
                )
