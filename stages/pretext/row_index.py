"""Numbers the rows of a data set, for a memory bank that has a place for each (CMC).

Two steps: `NumberRows` reads all ids, `RowIndex` adds the column. A row's number depends on the ids of all rows alone, not
on shards.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import need, with_field
from vlpipe.pipeline.stage import GatherStage, Job, MapStage, Work
from vlpipe.stages.common.row import RESULTS
from vlpipe.stages.common.scores import with_columns
from vlpipe.stages.loading.rows import int64_id

FILE = "hashes.npy"
INDEX = pa.field("row_index", pa.int64())  # of `stages.loading.makers.row_index`


@dataclass(frozen=True, kw_only=True)
class NumberRows(GatherStage):
    """Artifact `hashes.npy`, for `RowIndex`: the sorted hashes of all ids, 8 bytes each. Emits RESULTS: `num_rows`.

    Raises VlpipeError if two rows have the same id.
    """

    NAME: ClassVar[str] = "pretext.row_index:NumberRows"
    ROWS_ARE: ClassVar[str] = "figures"

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "pretext.row_index", id=pa.string())
        return RESULTS

    def run(self, job: Job) -> None:
        parts = [
            np.array([int64_id(id_) for id_ in rows["id"].to_pylist()], np.int64)
            for data in job.inputs
            for rows in data.batches(["id"])
        ]
        hashes = np.sort(np.concatenate([np.empty(0, np.int64), *parts]))
        if (hashes[1:] == hashes[:-1]).any():
            raise VlpipeError("pretext.row_index: two rows have the same id, so that they cannot be numbered")
        np.save(Path(job.artifacts, FILE), hashes)
        rows = [{"name": "num_rows", "value": float(len(hashes)), "num_rows": len(hashes)}]
        job.emit(pa.Table.from_pylist(rows, RESULTS))


@dataclass(frozen=True, kw_only=True)
class RowIndex(MapStage):
    """Adds `row_index` (int64): the row's number, from 0.

    numbers: `{from: STEP, path: hashes.npy}` of a `NumberRows` of the same rows. Raises VlpipeError for a row that it does
    not have.
    """

    NAME: ClassVar[str] = "pretext.row_index:RowIndex"

    numbers: File

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "pretext.row_index", id=pa.string())
        return with_field(inp, INDEX)

    @contextmanager
    def open(self) -> Iterator[Work]:
        hashes = np.load(self.numbers.path, allow_pickle=False)

        def work(rows: pa.Table) -> pa.Table:
            wanted = np.array([int64_id(id_) for id_ in rows["id"].to_pylist()], np.int64)
            found = np.searchsorted(hashes, wanted)
            known = np.append(hashes, -1)[found] == wanted
            if not known.all():
                lost = rows["id"][int(np.argmin(known))].as_py()
                raise VlpipeError(f"pretext.row_index: row {lost} is not among the rows that were numbered")
            return with_columns(rows, row_index=pa.array(found, INDEX.type))

        yield work
