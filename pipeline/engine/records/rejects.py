"""Writes and reads the rejects of a shard, `_rejects/000042.parquet`; in parts, so that they need not fit in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import pyarrow as pa

from vlpipe.pipeline.engine.records.receipts import damaged
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.shard import REJECT_SCHEMA, Reject, ShardWriter, open_parquet
from vlpipe.pipeline.storage.storable import storable
from vlpipe.pipeline.storage.store import Store, sha256_file

KINDS = ("fault", "filtered")
MAX_CODE, MAX_DETAIL = 100, 2_000  # max characters of `why` and `detail`
HELD = 512  # rejects per write


def rejects_path(folder: str, index: int) -> str:
    return f"{folder}/_rejects/{index:06d}.parquet"


def settled_reject(one: Any, got: str = "Out.rejects holds") -> Reject:
    """Returns the reject with its texts made storable and cut. Raises TypeError if it is not a valid Reject.

    got: begins the error text, before the invalid value.
    """
    if not (isinstance(one, Reject) and isinstance(one.id, str) and one.kind in KINDS):
        raise TypeError(f"{got} {storable(repr(one), 200)}; wanted Reject(id, 'fault' or 'filtered', why)")
    return Reject(one.id, one.kind, storable(one.why, MAX_CODE), storable(one.detail, MAX_DETAIL))


class RejectsWriter:
    """Context manager that writes one shard's rejects. Call `finish` last; after an error no file is left.

    digest: sha256 of the finished file; empty if there are no rejects.
    """

    def __init__(self, store: Store, folder: str, index: int, step: str) -> None:
        self._store, self._path, self._step = store, rejects_path(folder, index), step
        self._stack = ExitStack()  # the open temporary file
        self._part = self.digest = ""
        self._writer: ShardWriter | None = None
        self._held: list[dict[str, Any]] = []
        self._codes: Counter[str] = Counter()

    def __enter__(self) -> RejectsWriter:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def add(self, one: Reject) -> None:
        """Adds a reject. Raises VlpipeError if it is not a valid Reject."""
        try:
            one = settled_reject(one, "job.reject got")
        except TypeError as error:
            raise VlpipeError(str(error)) from error
        self._codes[f"{one.kind}:{one.why}"] += 1
        self._held.append(
            {"id": one.id, "stage": self._step, "kind": one.kind, "why": one.why, "detail": one.detail}
        )
        if len(self._held) >= HELD:
            self._write()

    def _write(self) -> None:
        if not self._held:
            return
        if self._writer is None:
            self._part = self._stack.enter_context(self._store.writing(self._path, sync_folder=False))
            self._writer = self._stack.enter_context(ShardWriter(self._part, REJECT_SCHEMA))
        self._writer.write(pa.Table.from_pylist(self._held, REJECT_SCHEMA))
        self._held = []

    def finish(self) -> dict[str, int]:
        """Commits the file; returns "kind:why" -> number of rows. Without rejects there is no file."""
        self._write()
        if self._writer is None:
            self._store.remove(self._path)
        else:
            self._writer.close()
            self.digest = sha256_file(self._part)
        self._stack.close()
        return dict(sorted(self._codes.items()))


def write_rejects(
    store: Store, folder: str, index: int, step: str, rejects: Iterable[Reject]
) -> tuple[dict[str, int], str]:
    """Writes a shard's rejects; returns ("kind:why" -> number of rows, sha256 of the file). Without rejects, no file."""
    with RejectsWriter(store, folder, index, step) as writer:
        for one in rejects:
            writer.add(one)
        return writer.finish(), writer.digest


def read_rejects(store: Store, folder: str, index: int) -> pa.Table:
    """Returns a shard's rejects, schema REJECT_SCHEMA; empty if there is no file. Raises VlpipeError if it is damaged."""
    path = rejects_path(folder, index)
    if not store.exists(path):
        return REJECT_SCHEMA.empty_table()
    with open_parquet(store, path) as file:
        try:
            return file.read().cast(REJECT_SCHEMA)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise damaged(store, path, error) from error
