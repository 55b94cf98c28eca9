"""Masks of pictures, files that say the class of each pixel, put to their rows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from vlpipe.pipeline.errors import RowFault, VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import Out, Reject, heavy, need, with_field
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.common.batches import without
from vlpipe.stages.lists.folder import read_inside

MASK = heavy("mask", pa.binary(), is_image=True)


@dataclass(frozen=True, kw_only=True)
class Masks(MapStage):
    """Adds the heavy column `mask`: the bytes of the PNG in the folder `masks` that has the name of the row's `url`.

    As in ADE20K, where images/training/X.jpg has annotations/training/X.png. Reject codes: no_file, bad_path.
    """

    NAME: ClassVar[str] = "downstream.dense.masks:Masks"

    masks: File

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "downstream.dense.masks", id=pa.string(), url=pa.string())
        return with_field(inp, MASK)

    @contextmanager
    def open(self) -> Iterator[Work]:
        root = os.path.realpath(self.masks.path)
        if not os.path.isdir(root):
            raise VlpipeError(f"`masks` must be a folder, but there is no folder {self.masks.path}")

        def work(table: pa.Table) -> Out:
            found: list[bytes] = []
            rejects: list[Reject] = []
            for id_, url in zip(table["id"].to_pylist(), table["url"].to_pylist(), strict=True):
                try:
                    found.append(read_inside(root, f"{os.path.splitext(url)[0]}.png"))
                except RowFault as fault:
                    rejects.append(Reject(id_, "fault", fault.why, fault.detail))
            column = pa.array(found, pa.binary())
            return Out(without(table, rejects).append_column(MASK, column), rejects)

        yield work
