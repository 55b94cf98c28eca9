"""A Parquet file that says its name when it turns out to be damaged, at whatever place that is seen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlpipe.pipeline.errors import VlpipeError

DAMAGE = (
    pa.ArrowException,
    OSError,
    ValueError,
    TypeError,
    LookupError,
)  # what PyArrow raises on bytes that are wrong


class Parquet(pq.ParquetFile):
    """A file whose errors name it. Page checksums are verified: a flipped bit is an error, never another value."""

    def __init__(self, source: Any, name: str) -> None:
        self.name = name
        with self._named():
            super().__init__(source, page_checksum_verification=True)
            self.columns = self.schema_arrow  # a schema that cannot be read is seen here

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except DAMAGE as error:
            if isinstance(error, (MemoryError, pa.ArrowCancelled)) or getattr(error, "errno", None):
                raise  # of the machine
            raise self._damaged(error) from error

    def _damaged(self, why: object) -> VlpipeError:
        text = " ".join(str(why).split())
        return VlpipeError(
            f"shard {self.name} cannot be read ({text}); `vlpipe verify` lists what is damaged"
        )

    def read_row_group(self, i: int, *args: Any, **options: Any) -> pa.Table:
        with self._named():
            table = super().read_row_group(i, *args, **options)
        if table.num_columns and table.num_rows != self.metadata.row_group(i).num_rows:
            raise self._damaged(f"row group {i} has {table.num_rows} rows")
        return table

    def read_row_groups(self, *args: Any, **options: Any) -> pa.Table:
        with self._named():
            return super().read_row_groups(*args, **options)

    def read(self, *args: Any, **options: Any) -> pa.Table:
        with self._named():
            return super().read(*args, **options)

    def iter_batches(self, *args: Any, **options: Any) -> Iterator[pa.RecordBatch]:
        batches = super().iter_batches(*args, **options)
        while True:
            with self._named():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch
