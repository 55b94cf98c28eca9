"""Values of one column over all rows of a step, as arrays in memory, for conditions and histograms.

A column is named by a dotted path: `width`, or `texts.score`, a field of the structs in a list. Only that column is read.
Text columns are held as codes of their distinct values, if these are few.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vlpipe.pipeline.errors import VlpipeError, did_you_mean
from vlpipe.pipeline.inspect.rows.cache import ByteCache
from vlpipe.pipeline.inspect.rows.table import RowTable
from vlpipe.pipeline.parquet.file import Parquet
from vlpipe.pipeline.parquet.references import is_list

MAX_NAMES = 2_000  # distinct values of a text column that is held as codes
LIST_ENTRIES = ("list", "element", "item")  # what Parquet puts between the names of a list and of its fields

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Leaf:
    """A column that can be filtered by. path: dotted; dtype: of one value; in_list: name of the list it is in, or ""."""

    path: str
    dtype: pa.DataType
    in_list: str = ""

    @property
    def is_number(self) -> bool:
        return bool(pa.types.is_integer(self.dtype) or pa.types.is_floating(self.dtype))

    @property
    def is_text(self) -> bool:
        return bool(pa.types.is_string(self.dtype) or pa.types.is_large_string(self.dtype))


@dataclass(frozen=True, eq=False, slots=True)
class Values:
    """The values of a column. data: (V,) numbers, NaN for null; or codes, -1 for null. names: what the codes stand for,
    None for numbers. rows: (V,), position of the row of each value, ascending; None if every row has one value."""

    data: Array
    names: tuple[str, ...] | None
    rows: npt.NDArray[np.uint32] | None

    @property
    def num_bytes(self) -> int:
        return int(self.data.nbytes + (0 if self.rows is None else self.rows.nbytes))


def leaves(schema: pa.Schema) -> list[Leaf]:
    """Returns the columns of a schema with numbers, texts or truth values: flat ones, fields of structs, items of lists and
    fields of structs in lists. Lists in lists and vectors of fixed length are left out."""
    return [leaf for f in schema for leaf in _leaves(f.name, f.type, "")]


def _leaves(path: str, dtype: pa.DataType, in_list: str) -> Iterator[Leaf]:
    if pa.types.is_struct(dtype):
        for f in dtype:
            yield from _leaves(f"{path}.{f.name}", f.type, in_list)
    elif is_list(dtype):
        if not in_list and not pa.types.is_fixed_size_list(dtype) and "." not in path:
            yield from _leaves(path, dtype.value_type, path)
    elif not (pa.types.is_binary(dtype) or pa.types.is_large_binary(dtype) or pa.types.is_null(dtype)):
        leaf = Leaf(path, dtype, in_list)
        if leaf.is_number or leaf.is_text or pa.types.is_boolean(dtype):
            yield leaf


def find_leaf(schema: pa.Schema, path: str) -> Leaf:
    """Returns the column of this path. Raises VlpipeError if there is none that can be filtered by."""
    known = {leaf.path: leaf for leaf in leaves(schema)}
    if path not in known:
        raise VlpipeError(f"there is no column {path!r} to filter by{did_you_mean(path, known)}")
    return known[path]


class ColumnReader:
    """Reads columns of tables, and keeps those used last, in at most `max_bytes` bytes."""

    def __init__(self, max_bytes: int) -> None:
        self.cache = ByteCache(max_bytes)

    def values(self, table: RowTable, leaf: Leaf) -> Values:
        """Returns all values of a column. Raises VlpipeError if it is a text column with more than MAX_NAMES values."""

        def load() -> Values:
            loaded = _load(table, leaf)
            rows = loaded.rows
            if rows is None:
                return loaded
            key = (table.store.url, table.version, "rows", leaf.in_list)
            return replace(loaded, rows=self.cache.get(key, lambda: rows, lambda kept: int(kept.nbytes)))

        key = (table.store.url, table.version, "values", leaf.path)
        return self.cache.get(key, load, lambda loaded: int(loaded.data.nbytes))

    def is_coded(self, table: RowTable, leaf: Leaf) -> bool:
        """True if the column's distinct values are few, so that `values` can hold them; looks at the first shard only."""

        def load() -> bool:
            part = next(table.each_shard(lambda file: read_leaf(file, leaf)), None)
            return part is None or len(part[0].unique()) <= MAX_NAMES

        return not leaf.is_text or self.cache.get(
            (table.store.url, table.version, "coded", leaf.path), load, lambda _: 8
        )


def read_leaf(file: Parquet, leaf: Leaf) -> tuple[pa.Array, npt.NDArray[np.uint32] | None]:
    """Returns the values of a column in one file, and the row in the file of each; None if each row has one."""
    top, *fields = leaf.path.split(".")
    stored = [name for name in _stored(file) if _dotted(name) == leaf.path]
    table = file.read(columns=stored, use_threads=False)
    values, rows, start = [], [], 0
    for chunk in table[top].chunks:
        if leaf.in_list:
            rows.append(pc.list_parent_indices(chunk).to_numpy().astype(np.uint32) + np.uint32(start))
            start += len(chunk)
            chunk = chunk.flatten()
        for name in fields:
            chunk = pc.struct_field(chunk, name)
        values.append(chunk)
    both = pa.concat_arrays(values) if values else pa.array([], leaf.dtype)
    if not leaf.in_list:
        return both, None
    return both, np.concatenate(rows) if rows else np.zeros(0, np.uint32)


def _stored(file: Parquet) -> list[str]:
    schema = file.schema
    return [schema.column(k).path for k in range(len(schema))]


def _dotted(stored: str) -> str:
    """Returns `texts.score` for Parquet's `texts.list.element.score`."""
    parts = stored.split(".")
    for at in range(len(parts) - 1):
        if parts[at] == LIST_ENTRIES[0] and parts[at + 1] in LIST_ENTRIES[1:]:
            return ".".join([*parts[:at], *parts[at + 2 :]])
    return stored


def _load(table: RowTable, leaf: Leaf) -> Values:
    parts: list[Array] = []
    rows: list[npt.NDArray[np.uint32]] = []
    names: dict[str, int] = {}
    starts = [int(s) for s, shard in zip(table.starts, table.shards, strict=False) if shard.num_rows]
    loaded = table.each_shard(lambda file: _one(read_leaf(file, leaf), leaf))
    for start, (data, own_names, inside) in zip(starts, loaded, strict=True):
        if own_names is not None:
            codes = np.array([names.setdefault(name, len(names)) for name in own_names], np.int32)
            data = np.concatenate([codes, np.array([-1], np.int32)])[data]  # code -1 is the last: null
            data = data.astype(np.int16)
            if len(names) > MAX_NAMES:
                raise VlpipeError(f"column {leaf.path!r} has more than {MAX_NAMES:,} different values")
        parts.append(data)
        if inside is not None:
            rows.append(inside + np.uint32(start))
    empty = np.zeros(0, np.int16 if not leaf.is_number else np.float32)
    return Values(
        np.concatenate(parts) if parts else empty,
        None if leaf.is_number else tuple(names),
        (np.concatenate(rows) if rows else np.zeros(0, np.uint32)) if leaf.in_list else None,
    )


def _one(
    read: tuple[pa.Array, npt.NDArray[np.uint32] | None], leaf: Leaf
) -> tuple[Array, Sequence[str] | None, npt.NDArray[np.uint32] | None]:
    """Returns (numbers, None, rows) or (codes, names of the codes, rows) of one file."""
    values, rows = read
    if leaf.is_number:
        small = pa.types.is_float32(leaf.dtype) or pa.types.is_float16(leaf.dtype)
        numbers = values.cast(pa.float32() if small else pa.float64(), safe=False)
        return numbers.to_numpy(zero_copy_only=False), None, rows
    if pa.types.is_boolean(values.type):
        return pc.fill_null(values.cast(pa.int8()), -1).to_numpy().astype(np.int32), ("false", "true"), rows
    coded = values.dictionary_encode()
    codes = pc.fill_null(coded.indices, -1).to_numpy().astype(np.int32)
    return codes, coded.dictionary.to_pylist(), rows
