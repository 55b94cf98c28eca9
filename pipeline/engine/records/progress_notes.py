"""Progress notes of a run, for progress bars and `vlpipe status`: which steps run, and rows done of slow shards.

Notes are files in the step's `work/` folder, which is removed when the step is done. They need only the root that all
workers share, with or without Ray. A note is valid only for the run that wrote it. A shard writes none in its first
`FIRST_S` seconds, then one every `EVERY_S` seconds: 30 bytes, no fsync.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from vlpipe.pipeline.engine.locking.lock import RUN_VARIABLE
from vlpipe.pipeline.storage.store import Store, canonical_json

FIRST_S = 5.0  # most shards are done by then
EVERY_S = 5.0
EVERY_REMOTE_S = 30.0  # a note in an object store is a request


def noted(store: Store, folder: str, index: int, batches: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Yields the batches and records progress. A batch counts as done when the next one is requested."""
    due, num_rows = time.monotonic() + FIRST_S, 0
    for batch in batches:
        yield batch
        num_rows += batch.num_rows
        if time.monotonic() >= due:
            _write(store, _rows_path(folder, index), num_rows)
            due = time.monotonic() + (EVERY_S if store.is_local else EVERY_REMOTE_S)


def rows_done(store: Store, folder: str, indexes: Iterable[int], run: str | None = None) -> dict[int, int]:
    """Returns shard number -> rows done so far, for shards with a note of the run with id `run`; None: of this run."""
    run = this_run() if run is None else run
    found = ((index, _read(store, _rows_path(folder, index), run)) for index in indexes)
    return {index: num_rows for index, num_rows in found if num_rows is not None}


def mark_running(store: Store, folder: str) -> None:
    """Records that this run is working on the step."""
    _write(store, _running_path(folder), 1)


def is_running(store: Store, folder: str, run: str) -> bool:
    """Returns True if the run with id `run` has marked the step as running."""
    return _read(store, _running_path(folder), run) is not None


def this_run() -> str:
    """Returns the id of the run that this process belongs to; empty outside a run."""
    return os.environ.get(RUN_VARIABLE, "")


def _running_path(folder: str) -> str:
    return f"{folder}/work/running.json"


def _rows_path(folder: str, index: int) -> str:
    return f"{folder}/work/{index:06d}.rows.json"


def _write(store: Store, rel: str, value: int) -> None:
    """Writes a note. I/O errors are ignored: a note is informational and must not fail the shard.

    Raises LockLost if another run has taken over the root: it may have finished the step and removed `work/`.
    """
    data = canonical_json({"run": this_run(), "value": value})
    with suppress(OSError):
        if not store.is_local:
            store.write_bytes(rel, data)
            return
        store.check_fence()
        path = Path(store.path(rel))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _read(store: Store, rel: str, run: str) -> int | None:
    """Returns the note's value; None if `run` wrote none or is writing it now."""
    try:
        note: Any = store.read_json(rel)
        return int(note["value"]) if note["run"] == run else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
