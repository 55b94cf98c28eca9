"""Computes region features as in "bottom-up attention", the input format of region-based vision-language models.

Anderson et al. 2018, https://arxiv.org/abs/1707.07998. Images are processed one at a time, so a row's regions do not
depend on other rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import RowFault
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import Out, Reject
from vlpipe.pipeline.stage import Work
from vlpipe.stages.common.batches import without
from vlpipe.stages.common.pixels import MAX_PIXELS, decode
from vlpipe.stages.common.region_rows import (
    Arrays,
    region_columns,
    regions_array,
    tags_of,
)
from vlpipe.stages.common.scores import with_columns
from vlpipe.stages.regions.base import RegionStage, Share

if TYPE_CHECKING:
    from vlpipe.models.detection.faster_rcnn import Pick, Regions
    from vlpipe.stages.common.detector import Detector


@dataclass(frozen=True, kw_only=True)
class RegionFeatures(RegionStage):
    """Adds the heavy column `regions` (see `common.region_rows`), and `region_tags` and `regions_weights`.

    region_tags: Oscar's object tags. regions_weights: digest (sha256) of the detector.
    detector: a folder written by `detector_training.train`, or a public Visual Genome checkpoint with its two lists of
    names. feat_dim, num_classes: of that detector; defaults: the Visual Genome detector.
    min_regions, max_regions, confidence, nms: bottom-up attention's selection rule, see `Pick`. LXMERT uses 36 and 36.
    refine: use the boxes refined by the head instead of the proposals that the features were pooled from.
    tag_confidence: regions below it give no tag. Tags are sorted best first, one per region, so a word may repeat.
    Reject codes: those of `common.pixels`; no_regions, if no region is found.
    """

    NAME: ClassVar[str] = "features.regions:RegionFeatures"

    detector: Weights
    feat_dim: Annotated[int, Field(ge=1)] = 2048
    num_classes: Annotated[int, Field(ge=1)] = 1600
    min_regions: Annotated[int, Field(ge=0)] = 36
    nms: Share = 0.3
    refine: bool = False
    tag_confidence: Share = 0.2
    max_pixels: Annotated[int, Field(ge=1)] = MAX_PIXELS

    @contextmanager
    def open(self) -> Iterator[Work]:
        from vlpipe.models.detection.faster_rcnn import Pick
        from vlpipe.stages.common.detector import load

        detector = load(self.detector.path)
        config = detector.model.config
        self.check_sizes(feat_dim=config.feat_dim, num_classes=config.num_classes)
        pick = Pick(
            least=self.min_regions,
            most=self.max_regions,
            confidence=self.confidence,
            nms=self.nms,
            refine=self.refine,
        )

        def work(table: pa.Table) -> Out:
            found: list[Arrays] = []
            rejects: list[Reject] = []
            for id_, data in zip(table["id"].to_pylist(), table["image"], strict=True):
                try:
                    found.append(self._detect(detector, pick, data.as_py()))
                except RowFault as fault:
                    rejects.append(Reject(id_, "fault", fault.why, fault.detail))
            tags = [tags_of(one, detector.classes, self.tag_confidence) for one in found]
            column = regions_array(found, self.feat_dim, self.num_classes + 1)
            kept = with_columns(without(table, rejects), **region_columns(column, tags, detector.digest))
            return Out(kept, rejects)

        yield work

    def _detect(self, detector: Detector, pick: Pick, data: bytes) -> Arrays:
        """Returns the regions of one image. Raises RowFault: no_regions, or one of `decode`."""
        image = decode(data, max_pixels=self.max_pixels)
        pixels, scale = detector.pixels(image)
        regions = detector.model.regions(pixels, pick)
        if not len(regions.obj):
            raise RowFault(
                "no_regions", "the detector finds no region in the image with at least `confidence`"
            )
        return region_arrays(regions, scale)


def region_arrays(regions: Regions, scale: tuple[float, float]) -> Arrays:
    """Converts tensors to CPU arrays, with boxes in pixels of the decoded image.

    scale: (x, y), its pixels per pixel of the resized image that the detector saw.
    """
    across, down = scale
    found = {name: getattr(regions, name).cpu().numpy() for name in regions.__dataclass_fields__}
    found["box"] = found["box"] * np.array([across, down, across, down], np.float32)
    return found
