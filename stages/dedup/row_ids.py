"""Ids and digests of all rows in memory: 32 bytes each if they are hex SHA-256 digests, else their text.

An Arrow array of 64-character strings holds at most 33,554,431 rows, because its offsets have 32 bits.
"""

from __future__ import annotations

import binascii
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.common.row import hex_strings

SIZE = 32
PACKED, TEXT = pa.binary(SIZE), pa.large_string()
BLOCK_ROWS = 65_536  # rows converted to strings at once

Places = npt.NDArray[np.int64]


class Packer:
    """Builds one array from the parts of a column. Strings become PACKED if all are null or 64 hex digits, else TEXT."""

    def __init__(self) -> None:
        self._parts: list[pa.Array] = []
        self._kind = PACKED

    def add(self, column: pa.ChunkedArray | pa.Array) -> None:
        for part in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
            one = self._of_kind(part)
            self._parts.append(one)

    def _of_kind(self, part: pa.Array) -> pa.Array:
        if not (pa.types.is_string(part.type) or pa.types.is_large_string(part.type)):
            self._kind = part.type
            return part
        packed = _packed(part) if self._kind == PACKED else None
        if packed is None and self._kind == PACKED:
            self._kind = TEXT
            self._parts = [_unpacked(one) for one in self._parts]
        return part.cast(TEXT) if packed is None else packed

    def array(self) -> pa.Array:
        return pa.concat_arrays([pa.array([], self._kind), *self._parts])


def packed(parts: Iterable[pa.ChunkedArray | pa.Array]) -> pa.Array:
    """Returns the parts as one array; see `Packer`."""
    packer = Packer()
    for part in parts:
        packer.add(part)
    return packer.array()


def _packed(part: pa.Array) -> pa.Array | None:
    """Decodes hex digits to bytes; returns None if any value is not 64 lower-case hex digits."""
    text = (pc.fill_null(part, "0" * 2 * SIZE) if part.null_count else part).cast(TEXT)
    if pc.any(pc.not_equal(pc.binary_length(text), 2 * SIZE)).as_py():
        return None
    _, offsets, data = text.buffers()
    first = int(np.frombuffer(offsets, np.int64)[text.offset]) if len(text) else 0
    digits = data.slice(first, 2 * SIZE * len(text)).to_pybytes() if data else b""
    try:
        raw = binascii.unhexlify(digits)
    except binascii.Error:
        return None
    if binascii.hexlify(raw) != digits:  # unhexlify also accepts upper case
        return None
    validity = pa.array(np.asarray(part.is_valid())).buffers()[1] if part.null_count else None
    return pa.FixedSizeBinaryArray.from_buffers(PACKED, len(part), [validity, pa.py_buffer(raw)])


def _unpacked(part: pa.Array) -> pa.Array:
    text = hex_strings(_raw(part).tobytes(), SIZE).cast(TEXT)
    return pc.if_else(part.is_valid(), text, pa.scalar(None, TEXT)) if part.null_count else text


def _raw(part: pa.Array) -> npt.NDArray[np.bytes_]:
    """Returns the bytes of a packed array, without a copy."""
    data = part.buffers()[1]
    return np.frombuffer(data, f"S{SIZE}")[part.offset : part.offset + len(part)] if len(part) else NOTHING


NOTHING = np.empty(0, f"S{SIZE}")


class Names:
    """The ids of all rows, indexed by row number."""

    def __init__(self, array: pa.Array) -> None:
        """array: a result of `packed`. Raises VlpipeError if it contains a null."""
        if array.null_count:
            raise VlpipeError(f"{array.null_count} row(s) have no id; dedup needs an id for each row")
        self._text = None if array.type == PACKED else array
        self._bytes = _raw(array) if array.type == PACKED else NOTHING

    def __len__(self) -> int:
        return len(self._bytes) if self._text is None else len(self._text)

    def take(self, rows: Places) -> pa.Array:
        """Returns the ids of these rows as strings; they must fit one string array (see BLOCK_ROWS)."""
        if self._text is None:
            return hex_strings(self._bytes[rows].tobytes(), SIZE)
        return self._text.take(pa.array(rows)).cast(pa.string())

    def blocks(self) -> Iterator[pa.Array]:
        for start in range(0, len(self), BLOCK_ROWS):
            yield self.take(np.arange(start, min(start + BLOCK_ROWS, len(self))))

    def reordered(self, rows: Places) -> Names:
        found = copy(self)
        found._bytes = self._bytes[rows] if self._text is None else NOTHING
        found._text = None if self._text is None else self._text.take(pa.array(rows))
        return found

    def order(self) -> Places:
        """Returns row numbers sorted by id."""
        if self._text is not None:
            return np.asarray(pc.array_sort_indices(self._text), np.int64)
        words = self._bytes.view(">u8").reshape(-1, SIZE // 8)
        order = np.argsort(words[:, 0].astype(np.uint64))
        first = words[order, 0]
        if (first[1:] == first[:-1]).any():
            order = np.lexsort(words.T[::-1])
        return np.asarray(order, np.int64)

    def num_repeated(self) -> int:
        """Returns how many rows have the same id as an earlier row."""
        if self._text is not None:
            return len(self) - int(pc.count_distinct(self._text).as_py())
        inorder = self._bytes[self.order()]
        return int((inorder[1:] == inorder[:-1]).sum())

    def places(self, parts: Sequence[pa.Array]) -> list[Places]:
        """Returns the row numbers of the ids in each part; -1 for an unknown id."""
        if self._text is None:
            order = self.order()
            inorder = self._bytes[order]
            return [_search(inorder, order, part) for part in parts]
        ids = pa.concat_arrays([pa.array([], TEXT), *(part.cast(TEXT) for part in parts)])
        found = np.asarray(pc.fill_null(pc.index_in(ids, value_set=self._text), -1), np.int64)
        return [found[start:stop] for start, stop in pairwise(np.cumsum([0, *map(len, parts)]))]


def joined(*many: Names) -> Names:
    """Returns the concatenation of several `Names`."""
    return Names(packed(block for names in many for block in names.blocks()))


def _search(inorder: npt.NDArray[np.bytes_], order: Places, ids: pa.Array) -> Places:
    wanted = _packed(ids)
    if wanted is None:  # at least one id is not a digest, so it is unknown
        each = (_search(inorder, order, ids[row : row + 1]) for row in range(len(ids)))
        return np.array([-1]) if len(ids) == 1 else np.concatenate([*each])
    keys = _raw(wanted)
    if not len(inorder):
        return np.full(len(keys), -1)
    at = np.minimum(np.searchsorted(inorder, keys), len(inorder) - 1)
    return np.where(inorder[at] == keys, order[at], -1)


def digest_words(values: pa.Array) -> npt.NDArray[np.uint64]:
    """Returns (N, 2) uint64 for a result of `packed`: 128-bit digests, equal for equal values."""
    if values.type == PACKED:
        return _raw(values).view(np.uint64).reshape(-1, SIZE // 8)[:, :2]
    blocks = (values[start : start + BLOCK_ROWS] for start in range(0, len(values), BLOCK_ROWS))
    texts = (text.encode() for block in blocks for text in pc.fill_null(block, "").to_pylist())
    data = b"".join(hashlib.blake2b(text, digest_size=16).digest() for text in texts)
    return np.frombuffer(data, np.uint64).reshape(-1, 2)
