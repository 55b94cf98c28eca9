"""A Parquet reader whose errors name the file, both on opening and on later reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.parquet.image_files import as_read, read_schema

# What PyArrow raises for corrupt bytes.
DAMAGE = (pa.ArrowException, OSError, ValueError, TypeError, LookupError)


class Parquet(pq.ParquetFile):
    """A Parquet file that raises VlpipeError with its name if it is damaged. Page checksums are verified: a flipped bit
    is an error, never a different value. Image files are read as bytes, however they are stored (`image_files`)."""

    def __init__(self, source: Any, name: str) -> None:
        self.name, self.source = name, source
        with self._named():
            super().__init__(source, page_checksum_verification=True)
            self.columns = self.schema_arrow  # fails here if the schema is unreadable

    @property
    def schema_arrow(self) -> pa.Schema:
        return read_schema(super().schema_arrow)

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except DAMAGE as error:
            if isinstance(error, (MemoryError, pa.ArrowCancelled)) or getattr(error, "errno", None):
                raise  # an infrastructure error
            raise self._damaged(error) from error

    def _damaged(self, why: object) -> VlpipeError:
        text = " ".join(str(why).split())
        return VlpipeError(
            f"shard {self.name} cannot be read ({text}); `vlpipe verify` lists what is damaged"
        )

    def read_row_group(self, i: int, *args: Any, **options: Any) -> pa.Table:
        with self._named():
            table = as_read(super().read_row_group(i, *args, **options))
        if table.num_columns and table.num_rows != self.metadata.row_group(i).num_rows:
            wanted = self.metadata.row_group(i).num_rows
            raise self._damaged(
                f"row group {i} has {table.num_rows} rows, but the footer of the file says {wanted}"
            )
        return table

    def read_row_groups(self, *args: Any, **options: Any) -> pa.Table:
        with self._named():
            return as_read(super().read_row_groups(*args, **options))

    def read(self, *args: Any, **options: Any) -> pa.Table:
        with self._named():
            return as_read(super().read(*args, **options))

    def iter_batches(self, *args: Any, **options: Any) -> Iterator[pa.RecordBatch]:
        batches = super().iter_batches(*args, **options)
        while True:
            with self._named():
                batch = next(batches, None)
            if batch is None:
                return
            yield as_read(batch)
