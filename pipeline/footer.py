"""Is the footer of a shard what the one writer of shards wrote? Page checksums do not cover it.

A flipped bit there may turn a column into another type, or hide rows, and most readers would not notice. The writer is
always set the same, so nearly all of a footer follows from the columns and from where the pages lie.
"""

from __future__ import annotations

import base64
import io
from functools import lru_cache

import pyarrow as pa
import pyarrow.parquet as pq

MAGIC = 4  # bytes of `PAR1`, at both ends

SETTINGS = {
    # Statistics and dictionaries are off: both depend on writer state, and zstd takes what dictionaries would.
    "compression": "zstd",
    "compression_level": 1,
    "use_dictionary": False,
    "write_statistics": False,
    "write_page_checksum": True,
}


def footer_problem(file: pq.ParquetFile, num_bytes: int) -> str:
    """What cannot be true of a shard of that size; "" when nothing is wrong."""
    meta = file.metadata
    try:
        like = _schema_of((meta.metadata or {})[b"ARROW:schema"])
    except (KeyError, ValueError, pa.ArrowException, OSError):
        return "what it says of its columns cannot be read"
    if not meta.schema.equals(like):
        return "its columns contradict each other"
    end, num_rows = MAGIC, 0
    for group in range(meta.num_row_groups):
        rows = meta.row_group(group)
        num_rows += rows.num_rows
        for column in range(rows.num_columns):
            chunk = rows.column(column)
            if (
                chunk.data_page_offset != end or chunk.has_dictionary_page
            ):  # to ask for its codec may end the process
                return f"column {chunk.path_in_schema} does not lie where it should"
            flat = "." not in chunk.path_in_schema
            if chunk.num_values < rows.num_rows or (flat and chunk.num_values != rows.num_rows):
                return f"column {chunk.path_in_schema} has {chunk.num_values} values for {rows.num_rows} rows"
            end += chunk.total_compressed_size
    if end != num_bytes - meta.serialized_size - 2 * MAGIC or num_rows != meta.num_rows:
        return f"its row groups have {num_rows} rows, and end at byte {end}"
    return ""


@lru_cache(maxsize=256)
def _schema_of(stored: bytes) -> pq.ParquetSchema:
    """The Parquet columns of a shard of the Arrow schema that lies in its footer."""
    schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(stored, validate=True)))
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, schema, **SETTINGS):
        pass
    buffer.seek(0)
    return pq.read_metadata(buffer).schema
