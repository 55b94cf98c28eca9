"""Files read in large blocks, and several at once: of 512 rows at a time most of the time goes into beginning again."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

BLOCK_ROWS, BLOCK_BYTES = 65_536, 1 << 26
MAX_AT_ONCE = 8  # files; each may hold a block

T = TypeVar("T")
R = TypeVar("R")


def blocks(
    file: pq.ParquetFile, columns: Sequence[str] | None = None
) -> Iterator[tuple[list[int], pa.Table]]:
    """Row groups together, up to BLOCK_ROWS rows or BLOCK_BYTES of what is read, at least one: numbers, and the rows.

    columns: None for all.
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
    """`work` of each thing, in order, on as many threads as there are CPUs; what it raises is raised here."""
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
