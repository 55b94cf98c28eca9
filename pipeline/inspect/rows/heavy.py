"""Heavy values of single rows, such as the image of a card: the page that holds a value is read, not its row group."""

from __future__ import annotations

import threading
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.inspect.rows.cache import ByteCache
from vlpipe.pipeline.inspect.rows.table import RowTable
from vlpipe.pipeline.parquet.file import Parquet
from vlpipe.pipeline.parquet.page_reads import Pages, pages_of, values_of
from vlpipe.pipeline.shard import Heavy, Shard, open_shard
from vlpipe.pipeline.storage.store import Store

CACHE_BYTES = 64 << 20  # of pages, and of row groups of columns that have none
LOADS = 2  # pages or row groups that are read at once


class HeavyReader:
    """Reads heavy values of single rows. Pages, and ids of the files that hold them, are kept in bounded bytes."""

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        self._parts = ByteCache(max_bytes)
        self._ids = ByteCache(max_bytes // 2)
        self._slots = threading.BoundedSemaphore(LOADS)

    def value(self, table: RowTable, position: int, column: str) -> Any:
        """Returns the value, as `pyarrow.Scalar.as_py` does. Raises VlpipeError if there is no such heavy column or row, or
        if the file is damaged."""
        if column not in table.heavy:
            raise VlpipeError(
                f"the step has no heavy column {column!r}; it has {', '.join(table.heavy) or 'none'}"
            )
        k, row = table.shard_of(position)
        shard = table.shards[k]
        holder = shard.holder(column)
        if isinstance(holder, Heavy):
            ids = self._ids_of(table, shard)
            row = self._row_of(table, holder, ids[row].as_py())
        return self._value(table.store, holder, row, column)

    def _row_of(self, table: RowTable, holder: Heavy, id_: str) -> int:
        row = pc.index(self._ids_of(table, holder), pa.scalar(id_, pa.string())).as_py()
        if row < 0:
            raise VlpipeError(f"{holder.path} has no row {id_!r}; heavy columns are joined by id")
        return int(row)

    def _ids_of(self, table: RowTable, shard: Shard | Heavy) -> pa.ChunkedArray:
        def load() -> pa.ChunkedArray:
            with open_shard(table.store, shard) as file:
                return file.read(columns=["id"], use_threads=False)["id"]

        return self._ids.get((table.store.url, shard.path, shard.digest), load, lambda ids: int(ids.nbytes))

    def _value(self, store: Store, holder: Shard | Heavy, row: int, column: str) -> Any:
        with open_shard(store, holder) as file:
            group, start = 0, 0
            while row >= start + file.metadata.row_group(group).num_rows:
                start += file.metadata.row_group(group).num_rows
                group += 1
            key = (store.url, holder.path, holder.digest, group, column)
            try:
                pages = self._pages(file, key, group, column)
                if pages is not None:
                    number = pages.holding(row - start)
                    return self._page(file, key, pages, number)[row - start - pages.pages[number].first]
            except ValueError as error:
                raise VlpipeError(
                    f"shard {file.name} cannot be read ({error}); `vlpipe verify` lists what is damaged"
                ) from error
            return self._group(file, key, group, column)[row - start].as_py()

    def _pages(self, file: Parquet, key: tuple[Any, ...], group: int, column: str) -> Pages | None:
        if not isinstance(file.source, pa.NativeFile):  # an object store: a row group is one request
            return None
        return self._parts.get(
            (*key, "pages"),
            lambda: pages_of(file, file.source, group, column),
            lambda pages: 100 * (1 + len(pages.pages) if pages else 1),
        )

    def _page(self, file: Parquet, key: tuple[Any, ...], pages: Pages, number: int) -> list[bytes | None]:
        def load() -> list[bytes | None]:
            with self._slots:
                return values_of(file.source, pages, number)

        return self._parts.get(
            (*key, number), load, lambda values: sum(40 + len(value or b"") for value in values)
        )

    def _group(self, file: Parquet, key: tuple[Any, ...], group: int, column: str) -> pa.ChunkedArray:
        def load() -> pa.ChunkedArray:
            with self._slots:
                return file.read_row_group(group, columns=[column], use_threads=False)[column]

        return self._parts.get(key, load, lambda loaded: int(loaded.nbytes))
