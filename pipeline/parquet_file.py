"""A Parquet file that says its name when it turns out to be damaged, at whatever place that is seen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

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


class NamedFile(pq.ParquetFile):
    """A file open for reading; VlpipeError names it when its bytes are no Parquet. `path` is for that."""

    def __init__(self, handle: IO[bytes], path: str) -> None:
        self.path = path
        with self._named():
            super().__init__(handle, page_checksum_verification=True)
            self.columns = self.schema_arrow  # a schema that cannot be read is seen here

    def read(self, *args: Any, **kwargs: Any) -> pa.Table:
        with self._named():
            return super().read(*args, **kwargs)

    def read_row_group(self, *args: Any, **kwargs: Any) -> pa.Table:
        with self._named():
            return super().read_row_group(*args, **kwargs)

    def iter_batches(self, *args: Any, **kwargs: Any) -> Iterator[pa.RecordBatch]:
        batches = super().iter_batches(*args, **kwargs)
        while True:
            with self._named():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except DAMAGE as error:
            raise VlpipeError(
                f"{self.path} cannot be read ({' '.join(str(error).split())}); `vlpipe verify` lists what is damaged"
            ) from error
