"""Ids of a step are there, and unique across its shards: 8 bytes a row, and a second look only at what seems to be twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vlpipe.pipeline.engine.records.receipts import Receipt
from vlpipe.pipeline.shard import open_parquet
from vlpipe.pipeline.storage.printable import cell
from vlpipe.pipeline.storage.store import Store

MAX_LOOKED_AT = 10_000  # hashes that came twice; of more, only so many are looked at again


@dataclass
class Ids:
    """The ids of a step's shards, shard after shard, as 64-bit hashes of this process."""

    _hashes: list[npt.NDArray[np.int64]] = field(default_factory=list)

    def add(self, store: Store, receipt: Receipt) -> int:
        """Take in a shard's ids; returns how many of its rows have none. A shard of other rows (losses, say) has no ids."""
        num_without = 0
        for ids in _read(store, receipt):
            num_without += pc.sum(pc.fill_null(pc.equal(ids, ""), True)).as_py() or 0
            self._hashes.append(np.fromiter(map(hash, ids.to_pylist()), np.int64, len(ids)))
        return num_without

    def twice(self) -> npt.NDArray[np.int64]:
        """Hashes that came more than once, sorted."""
        if not self._hashes:
            return np.array([], np.int64)
        known = np.concatenate(self._hashes)
        self._hashes = []
        known.sort()
        return np.unique(known[1:][known[1:] == known[:-1]])


def repeated(
    store: Store, receipts: list[Receipt], hashes: npt.NDArray[np.int64]
) -> Iterator[tuple[str, list[str]]]:
    """(id, shards it lies in) of each id with one of these hashes that really comes more than once."""
    places: dict[str, list[str]] = {}
    wanted = hashes[:MAX_LOOKED_AT]
    for receipt in receipts:
        for ids in _read(store, receipt):
            listed = ids.to_pylist()
            mine = np.isin(np.fromiter(map(hash, listed), np.int64, len(listed)), wanted)
            for row in np.flatnonzero(mine):
                if listed[row]:
                    places.setdefault(listed[row], []).append(receipt.shard.path)
    for id_, paths in places.items():
        if len(paths) > 1:
            yield cell(id_), paths


def _read(store: Store, receipt: Receipt) -> Iterator[pa.ChunkedArray]:
    with open_parquet(store, receipt.shard.path) as file:
        if "id" not in file.schema_arrow.names:
            return
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=["id"])["id"]
