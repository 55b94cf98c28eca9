"""Region records made of ground truth: what a perfect detector with very simple features would give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import RowFault
from vlpipe.pipeline.shard import Out, Reject, need, with_field
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.common.batches import without
from vlpipe.stages.common.pixels import decode
from vlpipe.stages.common.region_rows import (
    OBJECTS,
    Arrays,
    group_rows,
    region_columns,
    region_fields,
    regions_array,
    tags_of,
)
from vlpipe.stages.common.scores import with_columns
from vlpipe.stages.demo.scenes import COLOURS, SHAPES

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, kw_only=True)
class TrueRegions(MapStage):
    """Adds `regions` (see `common.region_rows`) from the ground-truth column `objects`: one per object, no detector runs.

    The feature is a grid of `grid` x `grid` mean colours of the box, from -1 to 1. Object class: the shape, attribute: the
    colour, both as ground truth tells, with confidence 1. For demos and tests of models that read regions.
    Reject codes: no_regions, if the image has no object, and those of `common.pixels`.
    """

    READS_HEAVY: ClassVar[tuple[str, ...]] = ("image",)
    NAME: ClassVar[str] = "demo.true_regions:TrueRegions"

    grid: Annotated[int, Field(ge=1)] = 6

    @property
    def feat_dim(self) -> int:
        return 3 * self.grid * self.grid

    @property
    def ROW_GROUP_ROWS(self) -> int:  # type: ignore[override]
        return min(512, group_rows(self.feat_dim, len(SHAPES) + 1, 2))

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "demo.true_regions", id=pa.string(), objects=OBJECTS, image=pa.binary())
        for field in region_fields(self.feat_dim, len(SHAPES) + 1):
            inp = with_field(inp, field)
        return inp

    @contextmanager
    def open(self) -> Iterator[Work]:
        def work(table: pa.Table) -> Out:
            found: list[Arrays] = []
            rejects: list[Reject] = []
            for id_, objects, data in zip(
                table["id"].to_pylist(), table["objects"].to_pylist(), table["image"], strict=True
            ):
                try:
                    found.append(self._regions(objects, data.as_py()))
                except RowFault as fault:
                    rejects.append(Reject(id_, "fault", fault.why, fault.detail))
            tags = [tags_of(one, SHAPES, 0.5) for one in found]
            column = regions_array(found, self.feat_dim, len(SHAPES) + 1)
            kept = with_columns(without(table, rejects), **region_columns(column, tags, "ground truth"))
            return Out(kept, rejects)

        yield work

    def _regions(self, objects: Sequence[Mapping[str, Any]], data: bytes) -> Arrays:
        """Returns the regions of one image. Raises RowFault: no_regions, or one of `decode`."""
        if not objects:
            raise RowFault("no_regions", "the ground truth has no object in this image")
        image = decode(data)
        classes = np.array([SHAPES.index(one["label"]) for one in objects])
        colours = [next(name for name in one["attributes"] if name in COLOURS) for one in objects]
        sure = np.ones(len(objects), np.float32)
        return {
            "feat": np.stack([self._colours(image, one["box"]) for one in objects]),
            "box": np.array([one["box"] for one in objects], np.float32),
            "prob": np.eye(len(SHAPES) + 1)[classes],
            "obj": classes,
            "obj_conf": sure,
            "attr": np.array([list(COLOURS).index(name) for name in colours]),
            "attr_conf": sure,
        }

    def _colours(self, image: Image.Image, box: Sequence[float]) -> npt.NDArray[np.float32]:
        from PIL import Image

        x1, y1, x2, y2 = box
        cells = image.resize((self.grid, self.grid), Image.Resampling.BOX, box=(x1, y1, x2, y2))
        return (np.asarray(cells, np.float32) / 127.5 - 1).ravel()
