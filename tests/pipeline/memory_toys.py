"""Stages that run out of memory, as torch says it on a GPU and on the host."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

import pyarrow as pa

from vlpipe.pipeline.stage import MapStage, Work


@dataclass(frozen=True, kw_only=True)
class NeedsMemory(MapStage):
    """Needs more memory than there is for a row group of more than `most` rows, and for row `never` alone."""

    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"most", "never"})
    TORCH: ClassVar[bool] = True

    kind: Literal["device", "host"] = "device"
    most: int = 0
    never: int = -1

    @contextmanager
    def open(self) -> Iterator[Work]:
        import torch

        def work(table: pa.Table) -> pa.Table:
            if table.num_rows > self.most or self.never in table["n"].to_pylist():
                if self.kind == "device":
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
                torch.empty(2**55, dtype=torch.uint8)
            return table

        yield work
