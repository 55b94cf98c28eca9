"""How long a step took, from its records."""

from __future__ import annotations

from collections.abc import Iterable

from vlpipe.pipeline.engine.records.receipts import Receipt, damaged, run_path, seconds_in
from vlpipe.pipeline.shard import open_parquet
from vlpipe.pipeline.storage.store import Store


def seconds_of(store: Store, folder: str, receipts: Iterable[Receipt] = ()) -> float:
    """Returns the seconds a step took, summed over its shards (so not wall-clock time); 0 if unknown.

    Without receipts, reads the finished step's `_shards.parquet`.
    """
    found = [seconds_in(r) for r in receipts]
    shards = f"{folder}/_shards.parquet"
    if not found and store.exists(shards):
        with open_parquet(store, shards) as file:
            found = file.read(["seconds"])["seconds"].to_pylist()
    if not found and store.exists(run_path(folder)):
        try:
            found = [float(store.read_json(run_path(folder)).get("seconds", 0))]
        except (ValueError, TypeError, AttributeError) as error:
            raise damaged(store, run_path(folder), error) from error
    return sum(found)
