"""Reference columns: columns with ids of other rows, which `vlpipe forget` removes with those rows."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from vlpipe.pipeline.errors import SchemaError

REF = b"vlpipe.ref"
ORIGIN = "="  # before the path of a reference column made with `is_origin`


def ref(name: str, dtype: pa.DataType, *, is_origin: bool = False) -> pa.Field:
    """Returns a field that holds ids of other rows, so that `vlpipe forget` can remove them.

    Columns `id` and `parent` do not need it. dtype: string or (nested) lists of strings. The field may be inside a struct or
    a list of structs. is_origin: what is beside the id was copied from that row, and goes with it: the struct, or the row;
    beside a list of ids, with any of them.
    Raises SchemaError for any other type.
    """
    if not _holds_ids(dtype):
        raise SchemaError(f"reference column {name!r}: wanted string or lists of strings, got {dtype}")
    return pa.field(name, dtype, metadata={REF: ORIGIN if is_origin else "1"})


def _holds_ids(dtype: pa.DataType) -> bool:
    if is_list(dtype):
        return _holds_ids(dtype.value_type)
    return bool(pa.types.is_string(dtype) or pa.types.is_large_string(dtype))


def reference_columns(schema: pa.Schema) -> tuple[str, ...]:
    """Returns dotted paths of the columns made by `ref`: `witness`, `texts.donors` (a field of a struct, in lists too);
    after ORIGIN, those that tell where a copy comes from."""
    found = ((path, (one.metadata or {}).get(REF)) for f in schema for path, one in nested(f))
    return tuple(ORIGIN * (kind == ORIGIN.encode()) + path for path, kind in found if kind)


def nested(f: pa.Field, above: str = "") -> Iterator[tuple[str, pa.Field]]:
    """Yields (dotted path, field) for `f` and all struct fields inside it. List items have the path of their list."""
    path, dtype = above + f.name, f.type
    yield path, f
    while is_list(dtype):
        dtype = dtype.value_type
    if pa.types.is_struct(dtype):
        for one in dtype:
            yield from nested(one, f"{path}.")


def is_list(dtype: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(dtype) or pa.types.is_large_list(dtype) or pa.types.is_fixed_size_list(dtype)
    )


def without_refs(f: pa.Field) -> pa.Field:
    """Returns the field without reference marks on struct fields inside it, so that marks do not change the file's bytes."""
    if not any(one.metadata and REF in one.metadata for _, one in nested(f)):
        return f
    return f.with_type(_plain(f.type))


def _plain(dtype: pa.DataType) -> pa.DataType:
    """Returns the type without metadata on its nested fields."""
    if pa.types.is_struct(dtype):
        return pa.struct([f.with_type(_plain(f.type)).remove_metadata() for f in dtype])
    if not is_list(dtype):
        return dtype
    value = dtype.value_field.with_type(_plain(dtype.value_type)).remove_metadata()
    if pa.types.is_fixed_size_list(dtype):
        return pa.list_(value, dtype.list_size)
    return pa.large_list(value) if pa.types.is_large_list(dtype) else pa.list_(value)
