"""Casts a stage's tables to the schema it declared, and checks that every row has a unique id."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from vlpipe.pipeline.errors import SchemaError, VlpipeError


def conform(table: Any, schema: pa.Schema, who: str) -> pa.Table:
    """Returns the columns of `schema`, in their order, cast and validated; other columns of `table` are dropped.

    Dictionary-encoded, chunked, large and view types are cast. Raises SchemaError if `table` is not a table or a column is
    missing or duplicated, ValueError if a value is invalid or cannot be cast to the declared type. The text of a SchemaError
    begins with `who`, that of a ValueError with the column.
    """
    table = need_columns(table, schema, who)
    if not table.num_rows:
        return schema.empty_table()
    made = pa.Table.from_arrays([cast(table[f.name], f) for f in schema], schema=schema)
    for name in made.schema.names:
        try:
            for chunk in made[name].chunks:
                chunk.validate(full=True)  # invalid UTF-8, offsets outside their buffer
        except pa.ArrowInvalid as error:
            raise ValueError(f"column {name!r} has invalid values: {error}") from error
    return made


def need_columns(table: Any, schema: pa.Schema, who: str) -> pa.Table:
    """Returns `table` as a pa.Table with the columns of `schema` and possibly others, not cast yet.

    Raises SchemaError if it is not a table or record batch, or if it has rows and a column of `schema` is missing or
    duplicated. who: begins the error text.
    """
    if isinstance(table, pa.RecordBatch):
        table = pa.Table.from_batches([table])
    if not isinstance(table, pa.Table):
        kind = f"{type(table).__module__}.{type(table).__qualname__}".removeprefix("builtins.")
        raise SchemaError(f"{who} returned {kind}; wanted a pyarrow.Table with columns {schema.names}")
    if not table.num_rows:
        return schema.empty_table()
    names = Counter(table.schema.names)
    if missing := [n for n in schema.names if n not in names]:
        raise SchemaError(
            f"{who}: declared column(s) {missing} are missing from the rows; they have {list(names)}"
        )
    if twice := [n for n in schema.names if names[n] > 1]:
        raise SchemaError(f"{who}: column(s) {twice} occur more than once")
    return table


def cast(column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    """Returns the column cast to the field's type. Raises ValueError if that fails or a null is not allowed."""
    try:
        if column.type != field.type:
            chunks = [part for chunk in column.chunks for part in _cast_chunk(chunk, field.type)]
            column = pa.chunked_array(chunks, field.type)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise ValueError(
            f"column {field.name!r} is {column.type} and cannot be cast to {field.type}: {error}"
        ) from error
    if not field.nullable and column.null_count:
        raise ValueError(
            f"column {field.name!r} is declared without nulls, but has {column.null_count} null value(s)"
        )
    return column


def _cast_chunk(chunk: pa.Array, dtype: pa.DataType) -> list[pa.Array]:
    if pa.types.is_run_end_encoded(chunk.type):
        chunk = pc.run_end_decode(chunk)
    try:
        return [chunk.cast(dtype)]
    except (pa.ArrowCapacityError, pa.ArrowInvalid) as error:
        too_large = isinstance(error, pa.ArrowCapacityError) or "too large" in str(error)
        if not (too_large or "overflow" in str(error)) or len(chunk) < 2:
            raise
    middle = len(chunk) // 2  # 32-bit offsets address at most 2 GiB per array
    return _cast_chunk(chunk.slice(0, middle), dtype) + _cast_chunk(chunk.slice(middle), dtype)


class OwnIds:
    """Checks that each row of a shard has an id and that no two rows share one. who: begins error texts: `shard 3: `."""

    def __init__(self, who: str = "") -> None:
        self._who = who
        self._chunks: list[pa.Array] = []

    def add(self, ids: pa.ChunkedArray) -> None:
        """Adds the ids of some rows. Raises VlpipeError if a row has no id."""
        need_ids(ids, self._who)
        self._chunks += ids.chunks

    def check(self) -> None:
        """Raises VlpipeError if an id occurs more than once."""
        if not self._chunks:
            return
        ids = pa.chunked_array(self._chunks)
        if pc.count_distinct(ids).as_py() == len(ids):
            return
        twice = {id_: n for id_, n in Counter(ids.to_pylist()).items() if n > 1}
        first, times = next(iter(twice.items()))
        others = f" and {len(twice) - 1:,} more ids occur more than once" if len(twice) > 1 else ""
        raise VlpipeError(
            f"{self._who}id {first!r} occurs {times} times{others}. Each row needs a unique id: rows are joined, "
            "rejected, forgotten and retried by it"
        )


def need_ids(ids: pa.ChunkedArray, who: str = "", name: str = "id") -> None:
    """Raises VlpipeError unless every row has a non-empty id. who: begins the error text; name: of the column."""
    kind = ids.type
    texts = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    num_empty = (pc.sum(pc.equal(ids, "")).as_py() or 0) if texts else 0
    if ids.null_count or num_empty:
        what = " and ".join(
            f"{n:,} row(s) have {text}"
            for n, text in ((ids.null_count, f"no {name} (null)"), (num_empty, f"an empty {name}"))
            if n
        )
        rule = "a unique id" if name == "id" else f"the id of an input row as {name}"
        raise VlpipeError(f"{who}{what}. Each row needs {rule}")
