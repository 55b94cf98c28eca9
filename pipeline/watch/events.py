"""The event log of a run: `ROOT/_events/RUN.jsonl`, one JSON object per line, written as things happen.

Keys of every line: `at` (seconds since 1970), `event`. Further keys by event:
run_started: run, workflow, steps, todo. step_started: step, shards (null if not known). shard_done: step, shard, rows_in,
rows_out, rejects ("kind:why" -> rows), seconds, reused. step_done: step, rows_in, rows_out, rejects, bytes, alarms.
run_failed: error. run_done. A run that is killed has no last line; one with nothing to do has no log.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any

from vlpipe.pipeline.engine.executor import Watcher
from vlpipe.pipeline.engine.planned import PlannedStep
from vlpipe.pipeline.engine.records.receipts import Receipt
from vlpipe.pipeline.errors import explain
from vlpipe.pipeline.inspect.alarms import alarms
from vlpipe.pipeline.storage.store import Store

FOLDER = "_events"
EVERY_S = 10.0  # between two files on an object store, which cannot append


class EventLog:
    """Writes the events of one run. Use as a context manager and pass `watcher` to the runner."""

    def __init__(self, store: Store, run_id: str, workflow: str, steps: Sequence[PlannedStep]) -> None:
        self._store, self._run = store, run_id
        self._file: IO[str] | None = None
        self._lines: list[str] = []
        self._num_files, self._written_s = 0, time.monotonic()
        todo = [one.name for one in steps if not one.is_done]
        self._first = {
            "run": run_id,
            "workflow": workflow,
            "steps": [one.name for one in steps],
            "todo": todo,
        }
        self.watcher = Watcher(
            started=self._started, shard=self._shard, finished=self._finished, tick=self._tick
        )

    def __enter__(self) -> EventLog:
        if self._store.is_local:
            self._store.fs.makedirs(self._store.path(FOLDER), exist_ok=True)
            self._file = open(self._store.path(f"{FOLDER}/{self._run}.jsonl"), "a", encoding="utf-8")
        self._write("run_started", self._first)
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._write("run_done", {}) if error is None else self._write("run_failed", {"error": explain(error)})
        if self._file is not None:
            self._file.close()
        else:
            self._flush()

    def _started(self, one: PlannedStep, total: int | None) -> None:
        self._write("step_started", {"step": one.name, "shards": total})

    def _shard(self, one: PlannedStep, receipt: Receipt, reused: bool) -> None:
        about = {
            "step": one.name,
            "shard": receipt.index,
            "rows_in": receipt.rows_in,
            "rows_out": receipt.shard.num_rows,
            "rejects": dict(receipt.rejects),
            "seconds": receipt.run.get("seconds", 0),
            "reused": reused,
        }
        self._write("shard_done", about)

    def _finished(self, one: PlannedStep) -> None:
        assert one.manifest is not None
        m = one.manifest
        figures = {"rows_in": m.rows_in, "rows_out": m.rows_out, "rejects": dict(m.rejects), "bytes": m.bytes}
        self._write("step_done", {"step": one.name, **figures, "alarms": alarms(one, self._store)})

    def _write(self, event: str, about: Mapping[str, Any]) -> None:
        line = json.dumps({"at": round(time.time(), 3), "event": event, **about}, ensure_ascii=False)
        if self._file is not None:
            self._file.write(line + "\n")
            self._file.flush()
        else:
            self._lines.append(line)

    def _tick(self) -> None:
        if self._file is None and time.monotonic() - self._written_s >= EVERY_S:
            self._flush()

    def _flush(self) -> None:
        if self._lines:
            text = "".join(f"{line}\n" for line in self._lines)
            self._store.write_bytes(f"{FOLDER}/{self._run}-{self._num_files:06d}.jsonl", text.encode())
            self._num_files, self._lines = self._num_files + 1, []
        self._written_s = time.monotonic()
