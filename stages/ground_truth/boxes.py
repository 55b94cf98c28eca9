"""Ground-truth boxes of the demo world's images, for training and evaluating detectors only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from vlpipe.pipeline.errors import RowFault
from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import Out, Reject, need, with_field
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.common.batches import without
from vlpipe.stages.common.region_rows import OBJECTS
from vlpipe.stages.ground_truth.filter import read_truth


@dataclass(frozen=True, kw_only=True)
class TrueBoxes(MapStage):
    """Adds `objects` from the demo world's truth.parquet: the shape is the label; colour and size are attributes.

    Boxes are those of the drawn shapes, in pixels, clipped to the image. Reject code: not_in_truth, if truth.parquet has
    no row with the image's URL.
    """

    truth: File

    NAME: ClassVar[str] = "demo.boxes:TrueBoxes"

    def schema(self, inp: pa.Schema) -> pa.Schema:
        size = {"width": pa.int32(), "height": pa.int32()}
        need(inp, "ground_truth.boxes", id=pa.string(), url=pa.string(), **size)
        return with_field(inp, pa.field("objects", OBJECTS))

    @contextmanager
    def open(self) -> Iterator[Work]:
        known = read_truth(self.truth)

        def work(table: pa.Table) -> Out:
            found: list[list[dict[str, Any]]] = []
            rejects: list[Reject] = []
            for row in table.select(["id", "url", "width", "height"]).to_pylist():
                try:
                    found.append(objects_of(row, known))
                except RowFault as fault:
                    rejects.append(Reject(row["id"], "fault", fault.why, fault.detail))
            kept = without(table, rejects)
            return Out(kept.append_column("objects", pa.array(found, OBJECTS)), rejects)

        yield work


def objects_of(row: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the ground-truth objects of an image, in the format of `OBJECTS`. RowFault: not_in_truth."""
    if row["url"] not in known:
        raise RowFault(
            "not_in_truth",
            f"{row['url']} is not in the ground-truth file; set `truth` to truth.parquet of the world that made the image",
        )
    width, height = row["width"], row["height"]
    return [
        {
            "box": [
                max(0.0, one["x"] * width),
                max(0.0, one["y"] * height),
                min(float(width), (one["x"] + one["w"]) * width),
                min(float(height), (one["y"] + one["h"]) * height),
            ],
            "label": one["shape"],
            "attributes": [one["colour"], one["size"]],
        }
        for one in known[row["url"]]["objects"]
    ]
