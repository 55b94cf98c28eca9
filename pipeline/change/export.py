"""`export`: writes a step's rows as plain Parquet, heavy columns joined in, for other tools."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyarrow as pa

from vlpipe.pipeline.engine.planned import PlannedStep
from vlpipe.pipeline.errors import VlpipeError, did_you_mean
from vlpipe.pipeline.parquet.image_files import as_stored, stored_schema
from vlpipe.pipeline.parquet.row_digest import DIGEST, checked
from vlpipe.pipeline.shard import Shard, heavy_names, is_heavy, read_batches, write_shard
from vlpipe.pipeline.storage.store import Store


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
    out = stored_schema(plain, pictures)
    written = []
    for receipt in one.receipts:
        batches = read_batches(store, receipt.shard, [*light, *more], heavy_names(schema))
        whole = (checked(batch, receipt.shard.path) for batch in batches)
        rows = (as_stored(batch.select(plain.names).cast(plain), pictures) for batch in whole)
        written.append(write_shard(to, f"{receipt.index:06d}.parquet", rows, out, notes=out.metadata))
        seen(written[-1])
    return written


def chosen(schema: pa.Schema, columns: Sequence[str] | None) -> pa.Schema:
    """Returns the schema of `columns`, in their order; None: the whole schema. Raises VlpipeError for an unknown column."""
    for name in columns or ():
        if name not in schema.names:
            raise VlpipeError(f"--columns: there is no column {name!r}{did_you_mean(name, schema.names)}")
    return pa.schema([schema.field(name) for name in columns]) if columns else schema
