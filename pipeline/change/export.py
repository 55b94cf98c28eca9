"""`export`: writes a step's rows as plain Parquet, heavy columns joined in, for other tools."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import pyarrow as pa

from vlpipe.pipeline.engine.planned import PlannedStep
from vlpipe.pipeline.errors import VlpipeError, did_you_mean
from vlpipe.pipeline.parquet.row_digest import DIGEST, checked
from vlpipe.pipeline.shard import Shard, heavy_names, is_heavy, read_batches, write_shard
from vlpipe.pipeline.storage.store import Store

PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # how `datasets` stores an image


def export(
    one: PlannedStep,
    store: Store,
    to: Store,
    columns: Sequence[str] | None = None,
    seen: Callable[[Shard], None] = lambda shard: None,
    pictures: Sequence[str] = (),
) -> list[Shard]:
    """Writes each shard as `000042.parquet` below `to` and returns the written shards.

    columns: None for all; seen: called after each shard; pictures: columns of image files to write as structs {bytes, path},
    which `datasets` and the Hub show as pictures (a column of bytes they show as bytes, whatever its metadata).

    Raises VlpipeError if the step is not done, a column is unknown, or `to` is not empty.
    """
    if not one.is_done:
        raise VlpipeError(
            f"step {one.name!r} is not done ({one.reason}); run `vlpipe run --until {one.name}` first"
        )
    if to.list():
        raise VlpipeError(f"{to.url} is not empty; export writes into a new or empty folder")
    schema = chosen(one.schema_out, columns)
    for name in pictures:
        if name not in schema.names or not pa.types.is_binary(schema.field(name).type):
            raise VlpipeError(
                f"--pictures: there is no column {name!r} of bytes{did_you_mean(name, schema.names)}"
            )
    light = [f.name for f in schema if not is_heavy(f)]
    # Columns needed to verify the rows.
    more = [n for n in ("id", DIGEST) if n in one.schema_out.names and n not in schema.names]
    plain = pa.schema([f.remove_metadata() for f in schema])
    out, notes = with_pictures(plain, pictures)
    written = []
    for receipt in one.receipts:
        batches = read_batches(store, receipt.shard, [*light, *more], heavy_names(schema))
        whole = (checked(batch, receipt.shard.path) for batch in batches)
        rows = (pictured(batch.select(plain.names).cast(plain), pictures) for batch in whole)
        written.append(write_shard(to, f"{receipt.index:06d}.parquet", rows, out, notes=notes))
        seen(written[-1])
    return written


def with_pictures(schema: pa.Schema, names: Sequence[str]) -> tuple[pa.Schema, dict[str, str]]:
    """Returns the schema with columns of image files as `datasets` stores images, and its note in a file that they are
    images."""
    if not names:
        return schema, {}
    features = {name: {"_type": "Image"} for name in names}
    fields = [pa.field(f.name, PICTURE) if f.name in names else f for f in schema]
    return pa.schema(fields), {"huggingface": json.dumps({"info": {"features": features}})}


def pictured(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """Returns the table with columns of image files as `with_pictures` says."""
    for name in names:
        data = table[name].combine_chunks()
        paths = pa.nulls(len(data), pa.string())
        column = pa.StructArray.from_arrays([data, paths], fields=list(PICTURE), mask=data.is_null())
        table = table.set_column(table.schema.get_field_index(name), pa.field(name, PICTURE), column)
    return table


def chosen(schema: pa.Schema, columns: Sequence[str] | None) -> pa.Schema:
    """Returns the schema of `columns`, in their order; None: the whole schema. Raises VlpipeError for an unknown column."""
    for name in columns or ():
        if name not in schema.names:
            raise VlpipeError(f"--columns: there is no column {name!r}{did_you_mean(name, schema.names)}")
    return pa.schema([schema.field(name) for name in columns]) if columns else schema
