"""The rows of a step as one long list over its shards, read by position: a page costs the row groups it lies in.

A position is the number of a row in the step, from 0, in shard order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vlpipe.pipeline.engine.records.receipts import Receipt
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.parquet.block_reads import each
from vlpipe.pipeline.parquet.file import Parquet
from vlpipe.pipeline.shard import Shard, is_heavy, open_parquet, open_shard
from vlpipe.pipeline.storage.store import Store

T = TypeVar("T")

Positions = npt.NDArray[np.uint32]


@dataclass(frozen=True, eq=False)
class RowTable:
    """The rows of a step, finished or not. shards: those that are there, in order; starts: (num_shards + 1,), position of
    the first row of each, then the number of rows; light, heavy: its columns; heavy ones may lie in other steps' files.
    version: changes when shards are added, for keys of caches."""

    store: Store
    shards: tuple[Shard, ...]
    starts: npt.NDArray[np.int64]
    light: pa.Schema
    heavy: tuple[str, ...]
    version: tuple[str, int, str]

    @property
    def num_rows(self) -> int:
        return int(self.starts[-1])

    def shard_of(self, position: int) -> tuple[int, int]:
        """Returns (number of the shard, row in it). Raises VlpipeError if there is no such row."""
        if not 0 <= position < self.num_rows:
            raise VlpipeError(f"there is no row {position:,}; the step has {self.num_rows:,} rows")
        k = int(np.searchsorted(self.starts, position, side="right")) - 1
        return k, position - int(self.starts[k])

    def each_shard(self, work: Callable[[Parquet], T]) -> Iterator[T]:
        """Yields `work(file)` for all shards, in order, a few at once. An empty shard is left out."""

        def one(shard: Shard) -> T:
            with open_shard(self.store, shard) as file:
                return work(file)

        return each(one, [shard for shard in self.shards if shard.num_rows])

    def rows(self, positions: Sequence[int], columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Returns columns of these rows, in the order of `positions`. columns: None for all light ones; unknown ones, and
        heavy ones that lie in another step's files, are left out.

        A row group is read once, however many of the rows are in it.
        """
        names = self.light.names if columns is None else [n for n in columns if n in self._stored()]
        places = [(self.shard_of(int(position)), n) for n, position in enumerate(positions)]
        by_shard: dict[int, list[tuple[int, int]]] = {}
        for (k, row), n in places:
            by_shard.setdefault(k, []).append((row, n))

        def read(item: tuple[int, list[tuple[int, int]]]) -> list[tuple[int, dict[str, Any]]]:
            k, wanted = item
            with open_shard(self.store, self.shards[k]) as file:
                return [(n, row) for n, row in _rows(file, sorted(wanted), names)]

        found = dict(pair for pairs in each(read, by_shard.items()) for pair in pairs)
        return [found[n] for n in range(len(positions))]

    def _stored(self) -> set[str]:
        """Returns the columns that are in the step's own files."""
        first = self.shards[0] if self.shards else None
        return {*self.light.names, *(n for n in self.heavy if first and first.holder(n) is first)}

    def find(self, ids: Sequence[str], column: str = "id") -> dict[str, int]:
        """Returns value -> position of the first row whose `column` has it. Reads the column once, however many values;
        those that no row has are left out."""
        if column not in self.light.names or not ids:
            return {}
        wanted = pa.array(list(dict.fromkeys(ids)), pa.string())
        num_values, start, found = len(wanted), 0, dict[str, int]()

        def look(file: Parquet) -> list[tuple[int, str]]:
            values = file.read(columns=[column], use_threads=False)[column]
            at = np.flatnonzero(pc.is_in(values, wanted).to_numpy(zero_copy_only=False))
            return list(zip(at.tolist(), values.take(pa.array(at)).to_pylist(), strict=True))

        counts = [shard.num_rows for shard in self.shards if shard.num_rows]
        for num_rows, rows in zip(counts, self.each_shard(look), strict=False):
            for row, value in rows:
                found.setdefault(value, start + row)
            if len(found) == num_values:
                break
            start += num_rows
        return found


def _rows(
    file: Parquet, wanted: Sequence[tuple[int, int]], names: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (second of the pair, row) for (row in the file, anything) pairs, which are sorted by row."""
    start = at = 0
    for group in range(file.num_row_groups):
        stop = start + file.metadata.row_group(group).num_rows
        inside = []
        while at < len(wanted) and wanted[at][0] < stop:
            inside.append(wanted[at])
            at += 1
        if inside:
            table = file.read_row_group(group, columns=list(names), use_threads=False)
            taken = table.take([row - start for row, _ in inside]).to_pylist()
            yield from ((n, row) for (_, n), row in zip(inside, taken, strict=True))
        if at == len(wanted):
            return
        start = stop


def open_rows(store: Store, folder: str, receipts: Sequence[Receipt]) -> RowTable:
    """Returns the rows of a step's shards. Raises VlpipeError if the first shard cannot be read."""
    shards = tuple(r.shard for r in receipts)
    starts = _starts(shards)
    light, heavy = pa.schema([]), list[str]()
    if shards:
        with open_shard(store, shards[0]) as file:
            fields = list(file.schema_arrow)
        light = pa.schema([f for f in fields if not is_heavy(f)])
        heavy = list(
            dict.fromkeys([f.name for f in fields if is_heavy(f)] + [h.column for h in shards[0].heavy])
        )
    version = (folder, len(shards), shards[-1].digest if shards else "")
    return RowTable(store, shards, starts, light, tuple(heavy), version)


def open_files(store: Store, rels: Sequence[str]) -> RowTable:
    """Returns the rows of Parquet files with equal columns; those that are not marked heavy count as light.

    Raises VlpipeError if a file cannot be read.
    """

    def look(rel: str) -> tuple[int, pa.Schema]:
        with open_parquet(store, rel) as file:
            return file.metadata.num_rows, file.schema_arrow

    looks = list(each(look, rels))
    shards = tuple(
        Shard(path=rel, num_rows=num, digest="") for rel, (num, _) in zip(rels, looks, strict=True)
    )
    fields = list(looks[0][1]) if looks else []
    return RowTable(
        store,
        shards,
        _starts(shards),
        pa.schema([f for f in fields if not is_heavy(f)]),
        tuple(f.name for f in fields if is_heavy(f)),
        ("\n".join(rels), len(shards), ""),
    )


def _starts(shards: Sequence[Shard]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum([s.num_rows for s in shards], dtype=np.int64)]).astype(np.int64)
