"""Reads Parquet files in large blocks, several files in parallel: at 512 rows per read, most of the time is overhead."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

BLOCK_ROWS, BLOCK_BYTES = 65_536, 1 << 26
MAX_AT_ONCE = 8  # max files read in parallel; each may hold a block in memory

T = TypeVar("T")
R = TypeVar("R")


def blocks(
    file: pq.ParquetFile, columns: Sequence[str] | None = None
) -> Iterator[tuple[list[int], pa.Table]]:
    """Yields (row group numbers, rows) for blocks of consecutive row groups, at least one per block.

    A block of several row groups has at most BLOCK_ROWS rows and BLOCK_BYTES bytes. columns: None for all.
    """
    groups: list[int] = []
    num_rows = num_bytes = 0
    for group in range(file.num_row_groups):
        about = file.metadata.row_group(group)
        size = _bytes_of(about, columns)
        if groups and (num_rows + about.num_rows > BLOCK_ROWS or num_bytes + size > BLOCK_BYTES):
            yield groups, file.read_row_groups(groups, columns=columns)
            groups, num_rows, num_bytes = [], 0, 0
        groups.append(group)
        num_rows, num_bytes = num_rows + about.num_rows, num_bytes + size
    if groups:
        yield groups, file.read_row_groups(groups, columns=columns)


def _bytes_of(about: pq.RowGroupMetaData, columns: Sequence[str] | None) -> int:
    if columns is None:
        return int(about.total_byte_size)
    chunks = (about.column(n) for n in range(about.num_columns))
    return sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.partition(".")[0] in columns)


def each(work: Callable[[T], R], things: Iterable[T]) -> Iterator[R]:
    """Yields `work(thing)` in order, computed on one thread per CPU, at most MAX_AT_ONCE. Raises what `work` raises."""
    num_at_once = min(MAX_AT_ONCE, os.cpu_count() or 1)
    begun: deque[Future[R]] = deque()
    with ThreadPoolExecutor(num_at_once) as pool:
        try:
            for thing in things:
                begun.append(pool.submit(work, thing))
                if len(begun) > 2 * num_at_once:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for one in begun:
                one.cancel()
