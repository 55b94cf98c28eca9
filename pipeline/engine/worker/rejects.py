"""Writes the rejects of a shard as they come, so that they need not fit in memory."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from typing import Any

import pyarrow as pa

from vlpipe.pipeline.engine.records.receipts import rejects_path
from vlpipe.pipeline.engine.worker.settle import settled_reject
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.shard import REJECT_SCHEMA, Reject, ShardWriter
from vlpipe.pipeline.storage.store import Store, sha256_file

HELD = 512  # rejects per write


class RejectsWriter:
    """Context manager. Only `finish` puts the file in place. digest: sha256 of the finished file."""

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
        """Raises VlpipeError if it is not a reject of a row."""
        try:
            one = settled_reject(one)
        except TypeError as error:
            raise VlpipeError(f"step {self._step}: {error}") from error
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
        """Commit the file; returns "kind:why" -> rows. Without rejects there is no file."""
        self._write()
        if self._writer is None:
            self._store.remove(self._path)
        else:
            self._writer.close()
            self.digest = sha256_file(self._part)
        self._stack.close()
        return dict(sorted(self._codes.items()))
