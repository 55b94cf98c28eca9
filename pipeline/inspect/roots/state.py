"""The steps of a root and how far they are, read from records alone: no stage is imported, so a page over a root starts at
once and needs no torch.

The steps of the last run are those in `_steps.json`; other folders of the root are results of earlier parameters.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from typing import Any

from vlpipe.pipeline.engine.plan import read_record
from vlpipe.pipeline.engine.records.manifest import Manifest, read_manifest, read_step_file
from vlpipe.pipeline.engine.records.progress_notes import is_running, rows_done
from vlpipe.pipeline.engine.records.receipts import Receipt, read_receipt, read_receipts, sum_counts
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.inspect.alarms import alarms_of
from vlpipe.pipeline.inspect.on_disk import folder_now, step_folders
from vlpipe.pipeline.inspect.roots.said import Said, read_said
from vlpipe.pipeline.inspect.seconds import seconds_of
from vlpipe.pipeline.inspect.status import Holder, live_run, lock_holder
from vlpipe.pipeline.stage import TIMED
from vlpipe.pipeline.storage.store import Store

FRESH_S = 1.0  # records are read again after this many seconds
RATE_S = 60.0  # the rate of a running step is that of the last minute
ASKED = 32  # shards under way whose progress notes are read


@dataclass(frozen=True, kw_only=True)
class StepState:
    """A step's folder. state: done, running, unfinished (it has shards), waiting (nothing yet).

    inputs: folders whose rows it reads; reads: folders whose artifacts it reads. total: shards it has when done, None if not
    known. part_rows: rows done of shards under way. rate: input rows per second in the last minute, None unless it is
    running. is_current: a step of the last run. is_gather: its shards are made from all inputs at once, as far as its
    receipts tell.
    """

    name: str
    folder: str
    use: str
    state: str
    is_current: bool = True
    is_gather: bool = False
    inputs: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    total: int | None = None
    part_rows: int = 0
    rate: float | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    manifest: Manifest | None = None
    receipts: Sequence[Receipt] = ()
    seconds: float = 0.0
    said: Said = field(default_factory=Said)
    problem: str = ""  # why its records cannot be read
    alarms: tuple[str, ...] = ()  # of a finished step; of another one, what it said

    @property
    def rows_in(self) -> int:
        return sum(r.rows_in for r in self.receipts)

    @property
    def rows_out(self) -> int:
        return sum(r.shard.num_rows for r in self.receipts)

    @property
    def num_bytes(self) -> int:
        return sum(r.bytes for r in self.receipts)

    @property
    def rejects(self) -> dict[str, int]:
        """ "kind:why" -> rows."""
        found: Counter[str] = Counter()
        for receipt in self.receipts:
            found.update(receipt.rejects)
        return dict(found)

    @property
    def counts(self) -> dict[str, int]:
        return sum_counts(self.receipts)

    @property
    def spent(self) -> dict[str, float]:
        """Seconds of a step with a model: waiting for input, computing, and all; empty if no shard measured them."""
        found: Counter[str] = Counter()
        for receipt in self.receipts:
            if TIMED[0] in receipt.run:
                found.update({kind: float(receipt.run.get(kind, 0)) for kind in (*TIMED, "seconds")})
        return dict(found)

    @property
    def warning(self) -> str:
        """What deserves a look, in one line; else empty."""
        if self.problem:
            return self.problem
        found = list(self.alarms)
        if self.state != "done" and self.rows_in and not self.rows_out and self.rejects:
            found.append(f"kept 0 % of its {self.rows_in:,} rows so far")
        faults = sum(r.num_faults for r in self.receipts)
        if faults > self.rows_in / 2:
            found.append(f"{faults:,} of {self.rows_in:,} rows failed")
        return "; ".join(found)


@dataclass(frozen=True)
class RootState:
    """The steps of a root, inputs before the steps that read them, and who holds its lock."""

    steps: tuple[StepState, ...]
    holder: Holder

    def step(self, folder: str) -> StepState:
        """Returns the step of this folder. Raises VlpipeError if the root has none."""
        for one in self.steps:
            if one.folder == folder:
                return one
        raise VlpipeError(f"the root has no step {folder!r}")


class RootReader:
    """Reads the state of a root, at most once in FRESH_S seconds. Receipts that were read stay in memory."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._lock = threading.Lock()
        self._read_at = float("-inf")
        self._state: RootState | None = None
        self._done: dict[tuple[str, str], list[Receipt]] = {}  # (folder, digest of its shards)
        self._alarms: dict[tuple[str, str], tuple[str, ...]] = {}
        self._parts: dict[tuple[str, str, int], Receipt] = {}  # (folder, file, bytes)
        self._rates: dict[str, deque[tuple[float, int]]] = {}

    def state(self) -> RootState:
        """Returns the state, at most FRESH_S seconds old, or older while another thread reads it."""
        before = self._state
        if before is not None and time.monotonic() - self._read_at <= FRESH_S:
            return before
        if not self._lock.acquire(blocking=before is None):
            return before or self.state()
        try:
            if self._state is None or time.monotonic() - self._read_at > FRESH_S:
                self._state = self._read()
                self._read_at = time.monotonic()
            return self._state
        finally:
            self._lock.release()

    def _read(self) -> RootState:
        record, run = read_record(self.store), live_run(self.store)
        folders = step_folders(self.store)
        planned = {str(one.get("folder", "")): name for name, one in record.items() if "step_key" in one}
        planned.pop("", None)
        known = [*folders, *(folder for folder in planned if folder not in folders)]
        found: dict[str, StepState] = {}
        for folder in known:
            name = planned.get(folder, "")
            try:
                found[folder] = self._step(folder, record.get(name, {}), run)
            except VlpipeError as error:
                found[folder] = _unreadable(folder, str(error))
            found[folder] = replace(found[folder], is_current=not planned or folder in planned)
        linked = [replace(one, **_links(one, found, planned)) for one in found.values()]
        ordered = in_order(linked)
        by_folder = {one.folder: one for one in ordered}
        return RootState(tuple(_with_total(one, by_folder) for one in ordered), lock_holder(self.store))

    def _step(self, folder: str, record: Mapping[str, Any], run: str) -> StepState:
        manifest, file = read_manifest(self.store, folder), read_step_file(self.store, folder) or {}
        both = {
            "name": folder.rpartition("-")[0],
            "folder": folder,
            "use": str(file.get("use") or record.get("use", "")),
            "params": file.get("params") or record.get("params", {}),
            "columns": tuple(file.get("schema", ())),
            "inputs": tuple(file.get("inputs") or record.get("inputs", ())),
            "is_gather": bool(record.get("gather")),
        }
        if manifest is not None:
            receipts = self._receipts_of(folder, manifest)
            key = (folder, manifest.shards_digest)
            if key not in self._alarms:
                is_filter = bool(record.get("filters"))
                self._alarms[key] = tuple(alarms_of(self.store, folder, manifest, receipts, is_filter))
            return StepState(
                **both,
                state="done",
                manifest=manifest,
                receipts=receipts,
                total=manifest.num_shards,
                seconds=seconds_of(self.store, folder, receipts),
                alarms=self._alarms[key],
            )
        receipts = self._unfinished(folder)
        running = bool(run) and is_running(self.store, folder, run)
        said = read_said(self.store, folder) if running or receipts else Said()
        part_rows = 0
        if running:
            under_way = [n for n in range(len(receipts) + ASKED) if n not in {r.index for r in receipts}][
                :ASKED
            ]
            part_rows = sum(rows_done(self.store, folder, under_way, run).values())
        rows = sum(r.rows_in for r in receipts) + part_rows
        return StepState(
            **both,
            state="running" if running else "unfinished" if receipts else "waiting",
            receipts=receipts,
            part_rows=part_rows,
            rate=self._rate(folder, rows) if running else None,
            seconds=seconds_of(self.store, folder, receipts) if receipts else 0.0,
            said=said,
            alarms=said.warnings,
        )

    def _receipts_of(self, folder: str, manifest: Manifest) -> list[Receipt]:
        key = (folder, manifest.shards_digest)
        if key not in self._done:
            self._done[key] = read_receipts(self.store, folder)
        return self._done[key]

    def _unfinished(self, folder: str) -> list[Receipt]:
        found = []
        for name, size in sorted(self.store.sizes(f"{folder}/_receipts").items()):
            number, _, ending = name.rpartition("/")[2].partition(".")
            if not number.isdigit() or ending != "json":
                continue
            key = (folder, name, size)
            if key not in self._parts:
                receipt = read_receipt(self.store, folder, int(number))
                if receipt is None:
                    continue
                self._parts[key] = receipt
            found.append(self._parts[key])
        return sorted(found, key=lambda r: r.index)

    def _rate(self, folder: str, rows: int) -> float | None:
        """Returns the rows per second since the oldest look in the last RATE_S seconds; None at the first look."""
        seen, now = self._rates.setdefault(folder, deque()), time.monotonic()
        while seen and (now - seen[0][0] > RATE_S or rows < seen[0][1]):
            seen.popleft()
        seen.append((now, rows))
        (began, before), spent = seen[0], now - seen[0][0]
        return (rows - before) / spent if began < now and spent > 0 else None


def _unreadable(folder: str, problem: str) -> StepState:
    return StepState(
        name=folder.rpartition("-")[0], folder=folder, use="", state="unfinished", problem=problem
    )


def _links(one: StepState, found: Mapping[str, StepState], planned: Mapping[str, str]) -> dict[str, Any]:
    """Returns `inputs` as folders that are there, and `reads`."""
    by_name = {name: folder for folder, name in planned.items() if folder in found}
    for folder in found:
        by_name.setdefault(folder.rpartition("-")[0], folder)
    inputs = (folder_now(folder, found.keys()) for folder in one.inputs)
    reads = (by_name.get(name, "") for name in dict.fromkeys(_froms(one.params)))
    return {
        "inputs": tuple(f for f in dict.fromkeys(inputs) if f in found and f != one.folder),
        "reads": tuple(f for f in reads if f and f != one.folder),
    }


def _froms(value: Any) -> Iterator[str]:
    """Yields the steps whose artifacts a parameter names: {"from": "pretrain", "path": ...}."""
    if isinstance(value, Mapping):
        if isinstance(value.get("from"), str):
            yield value["from"]
        for item in value.values():
            yield from _froms(item)
    elif isinstance(value, list):
        for item in value:
            yield from _froms(item)


def in_order(steps: Sequence[StepState]) -> list[StepState]:
    """Returns the steps, each after those that it reads from; steps on one level in the order of their names."""
    by_folder = {one.folder: one for one in sorted(steps, key=lambda s: s.folder)}
    graph = {folder: {*one.inputs, *one.reads} & set(by_folder) for folder, one in by_folder.items()}
    try:
        return [by_folder[folder] for folder in TopologicalSorter(graph).static_order()]
    except CycleError:  # folders of renamed steps
        return list(by_folder.values())


def _with_total(one: StepState, found: Mapping[str, StepState]) -> StepState:
    """Returns the step with `is_gather`, and with the number of shards of its inputs as `total`, if they are done."""
    above = [found[folder] for folder in one.inputs]
    digests = {r.shard.digest for p in above for r in p.receipts}
    is_gather = (
        one.is_gather
        or bool(one.said.last)
        or (bool(above) and bool(one.receipts) and not any(r.input_digest in digests for r in one.receipts))
    )
    one = replace(one, is_gather=is_gather)
    if one.total is not None or is_gather or not above or any(p.total is None for p in above):
        return one
    return replace(one, total=sum(p.total or 0 for p in above))
