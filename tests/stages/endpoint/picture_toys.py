"""A source of rows with a picture each, none like another."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from PIL import Image

from vlpipe.pipeline.shard import heavy
from vlpipe.pipeline.stage import SourceStage, Work
from vlpipe.stages.common.row import TEXTS, text


def picture_of(number: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (24, 16), (number % 256, number // 256 % 256, number // 65536)).save(out, "PNG")
    return out.getvalue()


@dataclass(frozen=True, kw_only=True)
class Pictures(SourceStage):
    num: int = 10
    first: int = 0

    def row_schema(self) -> pa.Schema:
        return pa.schema([("id", pa.string()), ("url", pa.string()), ("texts", TEXTS)])

    def rows(self) -> Iterator[pa.Table]:
        for start in range(self.first, self.first + self.num, 50):
            numbers = range(start, min(start + 50, self.first + self.num))
            columns: dict[str, Any] = {
                "id": [f"{n:064x}" for n in numbers],
                "url": [f"http://host{n % 3}.test/{n}.png" for n in numbers],
                "texts": [[text(f"alt {n}", "web")] for n in numbers],
            }
            yield pa.table(columns, self.row_schema())

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return inp.append(heavy("image", pa.binary()))

    @contextmanager
    def open(self) -> Iterator[Work]:
        def work(table: pa.Table) -> pa.Table:
            images = [picture_of(int(id_, 16)) for id_ in table["id"].to_pylist()]
            return table.append_column("image", pa.array(images, pa.binary()))

        yield work
