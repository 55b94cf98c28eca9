"""Removes what earlier runs left in a step's folder."""

from __future__ import annotations

from vlpipe.pipeline.engine.records.receipts import receipt_numbers, receipt_path, shard_path
from vlpipe.pipeline.engine.records.rejects import rejects_path
from vlpipe.pipeline.storage.store import Store


def sweep(store: Store, folder: str) -> None:
    """Removes temporary files of killed attempts. Call it only while no attempt of the step runs."""
    for below in ("", "/_receipts", "/_rejects", "/_log"):
        store.sweep(folder + below)


def drop_surplus(store: Store, folder: str, count: int) -> None:
    """Removes shards numbered `count` and above, left from an earlier, longer input."""
    for index in receipt_numbers(store, folder):
        if index >= count:
            for rel in (receipt_path, shard_path, rejects_path):
                store.remove(rel(folder, index))
