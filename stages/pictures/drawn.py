"""Drawn images with the texts they were drawn for, the best first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated, Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import GatherStage, Job
from vlpipe.stages.common.pixels import decode
from vlpipe.stages.drawing.draw import DRAWN
from vlpipe.stages.pictures.rows import PICTURES, picture


@dataclass(frozen=True, kw_only=True)
class DrawnSheets(GatherStage):
    """Emits PICTURES of the first `num` texts of a `drawing.draw:DrawImages`: its first `per_text` images by rank,
    `columns` in a row. Panels are named by rank, from 1, and by score if there is one.
    """

    NAME: ClassVar[str] = "pictures.drawn:DrawnSheets"
    ROWS_ARE: ClassVar[str] = "pictures"

    num: Annotated[int, Field(ge=1)] = 12
    per_text: Annotated[int, Field(ge=1)] = 8
    columns: Annotated[int, Field(ge=1)] = 8

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(
            inp,
            "pictures.drawn",
            **{f.name: f.type for f in DRAWN if f.name in ("id", "parent", "rank", "score", "image")},
        )
        return PICTURES

    def run(self, job: Job) -> None:
        for count, (parent, group) in enumerate(groupby(_rows(job), key=lambda row: row["parent"])):
            if count == self.num:
                return
            rows = sorted(group, key=lambda row: row["rank"])[: self.per_text]
            panels = [(_name(row), np.asarray(decode(row["image"]))) for row in rows]
            title = rows[0]["texts"][0]["text"]
            one = picture(f"{parent}-drawn", [parent], panels, title=title, columns=self.columns)
            job.emit(pa.Table.from_pylist([one], PICTURES))


def _rows(job: Job) -> Iterator[dict[str, Any]]:
    for data in job.inputs:
        for table in data.batches(["id", "parent", "texts", "rank", "score"], ["image"]):
            for start in range(0, len(table), 64):
                yield from table.slice(start, 64).to_pylist()


def _name(row: dict[str, Any]) -> str:
    return f"{row['rank'] + 1}" if row["score"] is None else f"{row['rank'] + 1}: {row['score']:.2f}"
