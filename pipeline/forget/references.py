"""Removes forgotten ids from reference columns, which hold ids of other rows and are declared by their step.

A single id becomes null. From a list of ids, forgotten ones are removed, at any depth of lists and structs; in a list of
fixed size they become null. What was copied from a forgotten row goes with the id that tells so: the struct that has it, or
the row.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vlpipe.pipeline.parquet.references import ORIGIN, is_list
from vlpipe.pipeline.parquet.text_sets import TextSet


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference column. fields: names of nested struct fields that lead to the ids; is_single: one id per row; is_origin:
    what is beside the id was copied from its row."""

    column: str
    fields: tuple[str, ...]
    is_single: bool
    is_origin: bool = False


def references_in(schema: pa.Schema, declared: Collection[str]) -> list[Reference]:
    """Returns references for those of the `declared` dotted paths that exist in the schema and hold strings."""
    wanted = {path.removeprefix(ORIGIN): path.startswith(ORIGIN) for path in declared}
    return [
        Reference(f.name, fields, not is_list(f.type) and not fields, wanted[path])
        for f in schema
        for path, fields, dtype in _paths(f.name, (), f.type)
        if path in wanted and _is_string(dtype)
    ]


def rows_naming(column: pa.ChunkedArray, ids: TextSet) -> npt.NDArray[np.bool_]:
    """Returns a mask of the rows (num_rows,) that hold one of the ids, alone or in a list."""
    if not is_list(column.type):
        return ids.mask(column)
    lengths = np.asarray(pc.fill_null(pc.list_value_length(column), 0), np.int64)
    hits = ids.mask(pc.list_flatten(column)).astype(np.int64)
    ends = np.concatenate([[0], np.cumsum(hits)])[np.cumsum(lengths)]
    return np.diff(ends, prepend=0) > 0


def origins(declared: Collection[str]) -> list[str]:
    """Returns the columns whose rows go with each row whose id they hold: `parent`, and declared ones with ids alone."""
    return [
        "parent",
        *(path.removeprefix(ORIGIN) for path in declared if path.startswith(ORIGIN) and "." not in path),
    ]


def _paths(
    path: str, fields: tuple[str, ...], dtype: pa.DataType
) -> Iterator[tuple[str, tuple[str, ...], pa.DataType]]:
    while is_list(dtype):
        dtype = dtype.value_type
    yield path, fields, dtype
    if pa.types.is_struct(dtype):
        for f in dtype:
            yield from _paths(f"{path}.{f.name}", (*fields, f.name), f.type)


def _is_string(dtype: pa.DataType) -> bool:
    return bool(pa.types.is_string(dtype) or pa.types.is_large_string(dtype))


def ids_of(table: pa.Table, ref: Reference) -> pa.ChunkedArray:
    """Returns all ids in a reference column, flattened."""
    column, fields = table[ref.column], list(ref.fields)
    while True:
        while is_list(column.type):
            column = pc.list_flatten(column)
        if not fields:
            return column
        column = pc.struct_field(column, fields.pop(0))


def without_ids(table: pa.Table, ref: Reference, gone: TextSet) -> pa.Table:
    """Returns the table without the ids `gone` in column `ref`; no row is removed. The same object if nothing changes."""
    if not gone.mask(ids_of(table, ref)).any():
        return table
    at = table.schema.get_field_index(ref.column)
    f = table.schema.field(at)
    column = pa.chunked_array([_without(c, ref, ref.fields, gone) for c in table[ref.column].chunks], f.type)
    return table.set_column(at, f, column)


def _without(array: pa.Array, ref: Reference, fields: tuple[str, ...], gone: TextSet) -> pa.Array:
    kind = array.type
    if pa.types.is_fixed_size_list(kind):  # items cannot be removed, so the id becomes null
        values = array.values.slice(array.offset * kind.list_size, len(array) * kind.list_size)
        return pa.FixedSizeListArray.from_arrays(
            _without(values, ref, fields, gone), type=kind, mask=array.is_null()
        )
    if is_list(kind):
        return _without_in_lists(array, ref, fields, gone)
    if fields:
        below = {fields[0]: fields[1:]}
        parts = [_field(array, f, ref, below, gone) for f in kind]
        goes = pa.array(_copied(array, ref, fields, gone))
        return pa.StructArray.from_arrays(parts, fields=list(kind), mask=pc.or_(array.is_null(), goes))
    return pc.if_else(pa.array(gone.mask(array)), pa.scalar(None, kind), array)


def _copied(array: pa.Array, ref: Reference, fields: tuple[str, ...], gone: TextSet) -> npt.NDArray[np.bool_]:
    """Returns a mask of the structs that were copied from forgotten rows."""
    if ref.is_origin and len(fields) == 1 and pa.types.is_struct(array.type):
        return gone.mask(pc.struct_field(array, fields[0]))
    return np.zeros(len(array), np.bool_)


def _field(
    array: pa.Array, f: pa.Field, ref: Reference, below: Mapping[str, tuple[str, ...]], gone: TextSet
) -> pa.Array:
    values = array.field(f.name)
    return _without(values, ref, below[f.name], gone) if f.name in below else values


def _without_in_lists(array: pa.Array, ref: Reference, fields: tuple[str, ...], gone: TextSet) -> pa.Array:
    kind, values = array.type, array.flatten()
    lengths = np.asarray(pc.fill_null(pc.list_value_length(array), 0), np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    is_id = not fields and _is_string(kind.value_type)
    goes = gone.mask(values) if is_id else _copied(values, ref, fields, gone)
    if goes.any():
        offsets = np.concatenate([[0], np.cumsum(~goes)])[offsets]
        values = values.filter(pa.array(~goes))
    if not is_id:
        values = _without(values, ref, fields, gone)
    large = pa.types.is_large_list(kind)
    lists, width = (pa.LargeListArray, pa.int64()) if large else (pa.ListArray, pa.int32())
    return lists.from_arrays(pa.array(offsets, width), values, type=kind, mask=array.is_null())
