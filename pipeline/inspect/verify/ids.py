"""Checks that each row of a step has an id and that ids are unique across its shards.

All ids are held as 64-bit hashes, 8 bytes per row. Only ids whose hash occurs more than once are read again and compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlpipe.pipeline.engine.records.receipts import Receipt
from vlpipe.pipeline.shard import open_parquet
from vlpipe.pipeline.storage.printable import cell
from vlpipe.pipeline.storage.store import Store

MAX_LOOKED_AT = 10_000  # max number of repeated hashes whose ids are read again; the rest are ignored


@dataclass
class Ids:
    """The ids of a step as 64-bit hashes. Python salts `hash` per process, so hashes of two processes cannot be compared."""

    _hashes: list[npt.NDArray[np.int64]] = field(default_factory=list)

    def add(self, store: Store, receipt: Receipt) -> tuple[int, int]:
        """Adds the ids of a shard. Returns its number of rows and how many of them have no id; 0 if there is no column `id`
        (losses, say)."""
        num_without = 0
        with open_parquet(store, receipt.shard.path) as file:
            for ids in _ids(file):
                num_without += pc.sum(pc.fill_null(pc.equal(ids, ""), True)).as_py() or 0
                self._hashes.append(np.fromiter(map(hash, ids.to_pylist()), np.int64, len(ids)))
            return int(file.metadata.num_rows), num_without

    def twice(self) -> npt.NDArray[np.int64]:
        """Returns the hashes that occur more than once, sorted, (num_hashes,). Discards all hashes to free their memory."""
        if not self._hashes:
            return np.array([], np.int64)
        known = np.concatenate(self._hashes)
        self._hashes = []
        known.sort()
        return np.unique(known[1:][known[1:] == known[:-1]])


def repeated(
    store: Store, receipts: list[Receipt], hashes: npt.NDArray[np.int64]
) -> Iterator[tuple[str, list[str]]]:
    """Yields (id, path of the shard of each occurrence) for ids that occur more than once.

    hashes: from `Ids.twice`; only the first MAX_LOOKED_AT are looked at.
    """
    places: dict[str, list[str]] = {}
    wanted = hashes[:MAX_LOOKED_AT]
    for receipt in receipts:
        with open_parquet(store, receipt.shard.path) as file:
            for ids in _ids(file):
                listed = ids.to_pylist()
                mine = np.isin(np.fromiter(map(hash, listed), np.int64, len(listed)), wanted)
                for row in np.flatnonzero(mine):
                    if listed[row]:
                        places.setdefault(listed[row], []).append(receipt.shard.path)
    for id_, paths in places.items():
        if len(paths) > 1:
            yield cell(id_), paths


def _ids(file: pq.ParquetFile) -> Iterator[pa.ChunkedArray]:
    """Yields the ids of each row group; nothing if there is no column `id`."""
    if "id" in file.schema_arrow.names:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=["id"])["id"]
