"""A source of video rows, for workflows in tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa

from vlpipe.pipeline.stage import SourceStage, Work


@dataclass(frozen=True, kw_only=True)
class VideoList(SourceStage):
    """`copies` rows for each file of the folder `videos`."""

    videos: str
    copies: int = 1

    def row_schema(self) -> pa.Schema:
        return pa.schema([("id", pa.string()), ("video", pa.string()), ("num_bytes", pa.int64())])

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return inp

    def rows(self) -> Iterator[pa.Table]:
        names = sorted(os.listdir(self.videos)) * self.copies
        sizes = [os.path.getsize(os.path.join(self.videos, name)) for name in names]
        ids = [f"{k}-{name}" for k, name in enumerate(names)]
        yield pa.table([ids, names, sizes], schema=self.row_schema())

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield lambda table: table
