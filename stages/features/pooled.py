"""Computes one unit vector per video or clip from its windows, with which `dedup.faiss` finds near duplicates.

Exact duplicates need no vector: `dedup.exact` reads `sha256`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vlpipe.pipeline.shard import Out, Reject, heavy, with_field
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.common.batches import without
from vlpipe.stages.common.scores import with_columns
from vlpipe.stages.features.video_tokens import check_features


@dataclass(frozen=True, kw_only=True)
class PoolWindows(MapStage):
    """Adds the heavy column `embedding`: fixed_size_list<float32>[D], the normalised mean of the row's unit window vectors.

    All windows have the same weight. Reject code: no_direction, if there are no windows, they are zero or cancel out.
    """

    NAME: ClassVar[str] = "features.pooled:PoolWindows"
    READS_HEAVY: ClassVar[tuple[str, ...]] = ("s3d",)

    def schema(self, inp: pa.Schema) -> pa.Schema:
        check_features(inp, "features.pooled")
        return with_field(inp, heavy("embedding", pa.list_(pa.float32(), _dim(inp))))

    @contextmanager
    def open(self) -> Iterator[Work]:
        def work(rows: pa.Table) -> Out:
            pooled = pool(rows["s3d"].combine_chunks(), _dim(rows.schema))
            lengths = np.linalg.norm(pooled, axis=1, keepdims=True)
            lost = np.flatnonzero(lengths[:, 0] < 1e-6)
            detail = "the window vectors add up to 0, or the row has no window"
            rejects = [Reject(rows["id"][int(row)].as_py(), "fault", "no_direction", detail) for row in lost]
            unit = (pooled / np.maximum(lengths, 1e-6)).astype(np.float32)
            column = pa.FixedSizeListArray.from_arrays(pa.array(unit.ravel()), unit.shape[1])
            return Out(without(with_columns(rows, embedding=column), rejects), rejects)

        yield work


def pool(windows: pa.ListArray, dim: int) -> npt.NDArray[np.float64]:
    """Returns the sum of each row's unit window vectors, (N, D) float64; 0 for a row without windows."""
    flat = pc.struct_field(pc.list_flatten(windows), "feat")
    vectors = np.asarray(pc.list_flatten(flat)).reshape(-1, dim).astype(np.float64)  # (windows, D)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    found = np.zeros((len(windows), dim))
    np.add.at(found, np.asarray(pc.list_parent_indices(windows)), vectors)
    return found


def _dim(schema: pa.Schema) -> int:
    return int(schema.field("s3d").type.value_type.field("feat").type.list_size)
