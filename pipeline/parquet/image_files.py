"""How columns of encoded image files are stored: as structs {bytes, path}, so that other tools show them as pictures.

`datasets.load_dataset("parquet")` and the viewer of the Hugging Face Hub show a column as pictures if it has this type and
the file's metadata names it as `Image`; a column of bytes is shown as bytes. `path` is always null. Stages see bytes: a
shard's writer makes the structs, and its reader takes the bytes out. Shards that store bytes are read as they are.
https://huggingface.co/docs/datasets/image_dataset
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc

IMAGE = b"vlpipe.image"  # in the metadata of a field: each value is an encoded image file
STORED = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
NOTE = "huggingface"  # key in the metadata of a file's schema

Rows = TypeVar("Rows", pa.Table, pa.RecordBatch)


def image_names(schema: pa.Schema) -> list[str]:
    """Returns the names of columns of bytes whose metadata says that they hold image files."""
    return [f.name for f in schema if f.metadata and IMAGE in f.metadata and pa.types.is_binary(f.type)]


def stored_images(schema: pa.Schema) -> list[str]:
    """Returns the names of columns that a file with schema `schema` stores as structs."""
    return [f.name for f in schema if _is_stored(f)]


def stored_schema(schema: pa.Schema, names: Collection[str]) -> pa.Schema:
    """Returns the schema of a file in which columns `names` are stored as structs; its metadata names them as images."""
    if not names:
        return schema
    features = {name: {"_type": "Image"} for name in names}
    fields = [f.with_type(STORED) if f.name in names else f for f in schema]
    notes = {**(schema.metadata or {}), NOTE: json.dumps({"info": {"features": features}})}
    return pa.schema(fields, notes)


def as_stored(table: pa.Table, names: Collection[str]) -> pa.Table:
    """Returns the table with columns `names`, of bytes, as structs. Null bytes give a null struct."""
    for name in names:
        at = table.schema.get_field_index(name)
        chunks = [
            pa.StructArray.from_arrays(
                [chunk, pa.nulls(len(chunk), pa.string())], fields=list(STORED), mask=chunk.is_null()
            )
            for chunk in table[name].chunks
        ]
        field = table.schema.field(at).with_type(STORED)
        table = table.set_column(at, field, pa.chunked_array(chunks, STORED))
    return table


def read_schema(schema: pa.Schema) -> pa.Schema:
    """Returns the schema that readers see of a file with schema `schema`: image files as bytes."""
    if not any(_is_stored(f) for f in schema):
        return schema
    notes: Mapping[bytes, bytes] = schema.metadata or {}
    rest = {key: value for key, value in notes.items() if key != NOTE.encode()}
    return pa.schema([_as_bytes(f) for f in schema], rest or None)


def as_read(rows: Rows) -> Rows:
    """Returns rows of a file as readers see them: image files as bytes."""
    if not any(_is_stored(f) for f in rows.schema):
        return rows
    columns = [
        pc.struct_field(column, 0) if _is_stored(field) else column
        for field, column in zip(rows.schema, rows.columns, strict=True)
    ]
    return type(rows).from_arrays(columns, schema=read_schema(rows.schema))


def _is_stored(field: pa.Field) -> bool:
    return bool(field.type == STORED and field.metadata and IMAGE in field.metadata)


def _as_bytes(field: pa.Field) -> pa.Field:
    return field.with_type(pa.binary()) if _is_stored(field) else field
