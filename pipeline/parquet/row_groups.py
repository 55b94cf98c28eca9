"""Decides where row groups end: at a fixed number of rows or at a limit in bytes, whichever comes first.

The result depends only on the rows, not on how a table is chunked, so that the same rows give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

# Max bytes of a row group and of a batch, unless a single row is larger. A stage gets one row group at a time, so this
# also bounds its memory; far below 2 GiB, 32-bit offsets cannot overflow.
MAX_BYTES = 64 << 20

Sizes = npt.NDArray[np.int64]


def num_fitting(rows: pa.Table, max_bytes: int = MAX_BYTES) -> int:
    """Returns the max number of leading rows that have at most `max_bytes` bytes together; at least 1."""
    if rows.nbytes <= max_bytes:  # an upper bound on the sum of `row_sizes`
        return int(rows.num_rows)
    return max(1, int(np.searchsorted(np.cumsum(row_sizes(rows)), max_bytes, side="right")))


def row_sizes(rows: pa.Table) -> Sizes:
    """Returns the bytes of the values of each row, (num_rows,), without offsets and null masks."""
    total = np.zeros(rows.num_rows, np.int64)
    for column in rows.columns:
        if column.num_chunks:
            total += np.concatenate([_sizes(chunk) for chunk in column.chunks])
    return total


def _sizes(array: pa.Array) -> Sizes:
    kind, num = array.type, len(array)
    if _is_bytes(kind):
        return np.asarray(pc.fill_null(pc.binary_length(array), 0).to_numpy(zero_copy_only=False), np.int64)
    if pa.types.is_fixed_size_list(kind):
        inner = array.values.slice(array.offset * kind.list_size, num * kind.list_size)
        return _not_null(array, _sizes(inner).reshape(num, kind.list_size).sum(axis=1))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_map(kind):
        offsets = array.offsets.to_numpy().astype(np.int64)
        inner = array.values.slice(offsets[0], offsets[-1] - offsets[0])
        ends = np.concatenate([[0], np.cumsum(_sizes(inner))])[offsets - offsets[0]]
        return _not_null(array, np.diff(ends))
    if pa.types.is_struct(kind):
        return sum((_sizes(part) for part in array.flatten()), np.zeros(num, np.int64))
    try:
        return np.full(num, kind.bit_width // 8, np.int64)
    except ValueError:  # other types without fixed width: only the row limit applies
        return np.zeros(num, np.int64)


def _is_bytes(kind: pa.DataType) -> bool:
    of = pa.types
    return bool(
        of.is_string(kind) or of.is_binary(kind) or of.is_large_string(kind) or of.is_large_binary(kind)
    )


def _not_null(array: pa.Array, sizes: Sizes) -> Sizes:
    """Returns the sizes with 0 for null entries."""
    if not array.null_count:
        return sizes
    return np.where(array.is_valid().to_numpy(zero_copy_only=False), sizes, 0)


def joined_up(pieces: Iterable[pa.Table], max_bytes: int = MAX_BYTES) -> Iterator[pa.Table]:
    """Yields concatenations of consecutive tables, each of at most `max_bytes` bytes or of a single table."""
    held: list[pa.Table] = []
    num_bytes = 0
    for piece in pieces:
        size = int(row_sizes(piece).sum())
        if held and num_bytes + size > max_bytes:
            yield pa.concat_tables(held)
            held, num_bytes = [], 0
        held.append(piece)
        num_bytes += size
    if held:
        yield pa.concat_tables(held)
