"""Bytes to image rows: every ingest stage checks them here, so what is kept decodes and its size is right."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import pyarrow as pa

from vlpipe.pipeline.errors import RowFault
from vlpipe.pipeline.shard import Out, Reject
from vlpipe.stages.pixels import verify
from vlpipe.stages.row import LISTED


class ImageRows:
    """Collects, in order, the rows of a batch that have a whole image, and why the others have none."""

    def __init__(self, batch: pa.Table, max_pixels: int, max_frames: int) -> None:
        self._batch = batch
        self._ids: list[str] = batch["id"].to_pylist()
        self._max_pixels, self._max_frames = max_pixels, max_frames
        self._kept: list[int] = []
        self._found: list[dict[str, Any]] = []
        self._rejects: list[Reject] = []

    def add(self, row: int, data: bytes, **more: Any) -> None:
        """Keep the row with these bytes as they are, and more columns; reject it when they are no image."""
        try:
            seen = verify(data, max_pixels=self._max_pixels, max_frames=self._max_frames)
        except RowFault as fault:
            self.reject(row, fault)
            return
        self._kept.append(row)
        self._found.append(
            {
                "sha256": hashlib.sha256(data).hexdigest(),
                "format": seen.format,
                "width": seen.width,
                "height": seen.height,
                "image": data,
                **more,
            }
        )

    def reject(self, row: int, fault: RowFault, kind: Literal["fault", "filtered"] = "fault") -> None:
        self._rejects.append(Reject(self._ids[row], kind, fault.why, fault.detail))

    def out(self, schema: pa.Schema) -> Out:
        """`schema` is LISTED and after it the columns that were added."""
        table = self._batch.select(LISTED.names).take(pa.array(self._kept, pa.int64()))
        for field in list(schema)[len(LISTED) :]:
            values = pa.array([found[field.name] for found in self._found], field.type)
            table = table.append_column(field, values)
        return Out(table, self._rejects)
