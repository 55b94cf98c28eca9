"""Builds image rows from bytes. All ingest stages check images here, so what `common.pixels` cannot decode is not stored."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, Literal

import pyarrow as pa

from vlpipe.pipeline.errors import RowFault
from vlpipe.pipeline.shard import Out, Reject
from vlpipe.stages.common.row import LISTED
from vlpipe.stages.images.blocks import Blocks
from vlpipe.stages.images.check import Checked, Rules, check


class ImageRows:
    """Collects, in order, the rows of a batch with a valid image, and a reject for each of the others."""

    def __init__(
        self,
        batch: pa.Table,
        rules: Rules,
        check_all: Callable[[Sequence[bytes]], Sequence[Checked | RowFault]] | None = None,
        blocks: Blocks | None = None,
    ) -> None:
        """check_all: function that checks images; by default `check`, which decodes them in this process. blocks: memory for
        the images, if several `ImageRows` share it."""
        self._batch = batch
        self._ids: list[str] = batch["id"].to_pylist()
        self._check_all = check_all or (lambda images: [_checked(data, rules) for data in images])
        self._blocks = blocks or Blocks()
        self.num_bytes = 0  # of the images collected
        self._kept: list[int] = []
        self._found: list[dict[str, Any]] = []
        self._rejects: list[tuple[int, Reject]] = []

    def add(self, row: int, data: bytes, **more: Any) -> None:
        """Adds row number `row` of the batch with its image bytes and the columns `more`; rejects it if they are invalid.

        Rows must be added in order.
        """
        self.add_all([(row, data, more)])

    def add_all(self, images: Sequence[tuple[int, bytes, dict[str, Any]]]) -> None:
        """Adds several (row, data, more) as `add` does one, and checks their images together. They must be sorted by row."""
        checked = self._check_all([data for _, data, _ in images])
        for (row, data, more), seen in zip(images, checked, strict=True):
            if isinstance(seen, RowFault):
                self.reject(row, seen)
            else:
                self._keep(row, data, seen, more)

    def _keep(self, row: int, data: bytes, seen: Checked, more: dict[str, Any]) -> None:
        original = hashlib.sha256(data).hexdigest()
        stored = original if seen.data is data else hashlib.sha256(seen.data).hexdigest()
        self._kept.append(row)
        self.num_bytes += len(seen.data)
        self._found.append(
            {
                "sha256": stored,
                "format": seen.format,
                "width": seen.width,
                "height": seen.height,
                "original_sha256": original,
                "original_width": seen.probe.width,
                "original_height": seen.probe.height,
                "image": seen.data,
                **more,
            }
        )

    def reject(self, row: int, fault: RowFault, kind: Literal["fault", "filtered"] = "fault") -> None:
        """Rejects row number `row` of the batch, in any order."""
        self._rejects.append((row, Reject(self._ids[row], kind, fault.why, fault.detail)))

    def out(self, schema: pa.Schema) -> Out:
        """Returns the rows and rejects collected since the last call.

        schema: LISTED, then columns of the image (IMAGE_FIELDS, original_*) or of `more`.
        """
        table = self._batch.select(LISTED.names).take(pa.array(self._kept, pa.int64()))
        for field in list(schema)[len(LISTED) :]:
            of = [found.pop(field.name) for found in self._found]
            values = _binary(of, self._blocks) if field.type == pa.binary() else pa.array(of, field.type)
            table = table.append_column(field, values)
        rejects = [reject for _, reject in sorted(self._rejects, key=lambda one: one[0])]
        self._kept, self._found, self._rejects, self.num_bytes = [], [], [], 0
        return Out(table, rejects)


def _binary(values: Sequence[bytes], blocks: Blocks) -> pa.Array:
    """Returns a binary array, built with one allocation; pa.array grows its buffer, which needs three times the memory."""
    ends = list(accumulate(map(len, values), initial=0))
    if ends[-1] >= 1 << 31:  # too large for one array
        return pa.array(values, pa.binary())
    buffer = blocks.buffer(ends[-1])
    with memoryview(buffer).cast("B") as room:
        for start, end, value in zip(ends, ends[1:], values, strict=False):
            room[start:end] = value
    offsets = pa.array(ends, pa.int32()).buffers()[1]
    return pa.Array.from_buffers(pa.binary(), len(values), [None, offsets, buffer])


def _checked(data: bytes, rules: Rules) -> Checked | RowFault:
    try:
        return check(data, rules)
    except RowFault as fault:
        return fault
