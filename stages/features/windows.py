"""Reads columns of feature vectors with times: `s3d`, `frame_feats`, `context_feats`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vlpipe.pipeline.errors import SchemaError
from vlpipe.stages.common.texts import as_array
from vlpipe.stages.features.s3d import features_type

Array = npt.NDArray[np.float32]
# column of windows -> column with the id of their weights, "digest" or "digest:normalisation"
WEIGHTS_OF = {"s3d": "s3d_weights", "frame_feats": "frame_weights", "context_feats": "context_weights"}
WRITERS = {  # column -> the stage that writes it
    "s3d": "features.s3d",
    "frame_feats": "features.frames",
    "context_feats": "features.context",
}


@dataclass(frozen=True, slots=True)
class WindowFeats:
    """The W windows of one row; times in seconds."""

    start_s: Array  # (W,)
    end_s: Array  # (W,)
    feats: Array  # (W, D)


def need_windows(schema: pa.Schema, who: str, name: str) -> int:
    """Returns the vector width D of a column of windows. Raises SchemaError if it is missing or has another type.

    who: name of the stage that reads it, for the error text. name: one of WRITERS.
    """
    if name not in schema.names:
        raise SchemaError(
            f"{who} reads column {name!r}, which no earlier step writes; add a step with {WRITERS[name]} before it"
        )
    dtype = schema.field(name).type
    entry = dtype.value_type if pa.types.is_list(dtype) else dtype
    dim = (
        entry.field("feat").type.list_size
        if pa.types.is_struct(entry) and entry.get_field_index("feat") >= 0
        else 0
    )
    if not dim or dtype != features_type(dim):
        raise SchemaError(f"{who} reads column {name!r} as windows (start_s, end_s, feat), but it is {dtype}")
    return int(dim)


def centred_in(
    starts: npt.NDArray[Any], ends: npt.NDArray[Any], start_s: float, end_s: float
) -> npt.NDArray[np.bool_]:
    """Returns (W,) bool: the windows with their centre in [start_s, end_s); if none, the one nearest to its middle.

    starts, ends: (W,) seconds.
    """
    middles = (starts.astype(np.float64) + ends) / 2
    inside: npt.NDArray[np.bool_] = (middles >= start_s) & (middles < end_s)
    if len(middles) and not inside.any():
        inside[np.abs(middles - (start_s + end_s) / 2).argmin()] = True
    return inside


def read_windows(column: pa.ChunkedArray) -> Iterator[WindowFeats]:
    """Yields the windows of each row, in order."""
    lists = as_array(column)
    lengths = np.asarray(pc.fill_null(pc.list_value_length(lists), 0))
    entries = lists.flatten()
    start_s, end_s = (pc.struct_field(entries, name).to_numpy() for name in ("start_s", "end_s"))
    vectors = pc.struct_field(entries, "feat")
    dim = vectors.type.list_size
    feats = vectors.flatten().to_numpy().astype(np.float32).reshape(-1, dim)
    at = 0
    for length in lengths.tolist():
        part = slice(at, at + length)
        yield WindowFeats(start_s[part], end_s[part], feats[part])
        at += length
