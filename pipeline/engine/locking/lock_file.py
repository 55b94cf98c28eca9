"""Lock files, `_lock/000042.json`: each run creates the next number, and the highest number is the current lock.

No name is ever used twice: the last run's file stays and records that the run has ended. So taking over from a dead run
does not touch its file; it only creates the next one, which exactly one run can do.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from vlpipe.pipeline.engine.locking.processes import is_running, this_machine
from vlpipe.pipeline.storage.store import Store, canonical_json

FOLDER = "_lock"
LEASE_S = 60.0  # a run that wrote no heartbeat for so long has stopped itself
FILE = re.compile(r"(\d{6,})\.json")

State = Literal["ended", "here", "gone", "fresh", "unclear", "damaged"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """Content of a lock file: the run that holds the root, or held it last.

    machine: see `this_machine`; started: see `process_start`; beat: time of its last heartbeat, in seconds since the epoch
    by its own clock.
    """

    run: str
    host: str
    machine: str
    pid: int
    started: str
    beat: float
    ended: bool = False

    @property
    def who(self) -> str:
        return f"process {self.pid} on {self.host}"

    def to_bytes(self) -> bytes:
        return canonical_json(asdict(self))


@dataclass(frozen=True, kw_only=True, slots=True)
class Lock:
    """The current lock file. record: None if it cannot be parsed."""

    rel: str
    content: bytes
    record: Record | None

    @property
    def number(self) -> int:
        return number_of(self.rel)


def rel_of(number: int) -> str:
    return f"{FOLDER}/{number:06d}.json"


def number_of(rel: str) -> int:
    return int(rel.rpartition("/")[2].removesuffix(".json"))


def lock_files(store: Store) -> list[str]:
    """Returns the paths of all lock files, the current one last. Others were left by runs that died while acquiring it."""
    names = (name for name in store.list(FOLDER) if FILE.fullmatch(name))
    return sorted((f"{FOLDER}/{name}" for name in names), key=number_of)


def newest(store: Store) -> Lock | None:
    """Returns the current lock file; None in a root in which nothing ever ran."""
    while found := lock_files(store):
        try:
            content = store.read_bytes(found[-1])
        except FileNotFoundError:  # replaced by a newer one
            continue
        return Lock(rel=found[-1], content=content, record=parse(content))
    return None


def parse(content: bytes) -> Record | None:
    """Returns the record, or None if it is invalid. Unknown keys, from another vlpipe version, are ignored."""
    try:
        value: Any = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, Mapping):
        return None
    texts = [value.get(name) for name in ("run", "host", "machine", "started")]
    pid, beat, ended = value.get("pid"), value.get("beat"), value.get("ended", False)
    if not all(isinstance(text, str) for text in texts) or not isinstance(ended, bool):
        return None
    if not (isinstance(pid, int) and 0 < pid < 2**31 and isinstance(beat, (int, float)) and abs(beat) < 1e12):
        return None
    return Record(**{f.name: value[f.name] for f in fields(Record) if f.name in value})


def state_of(lock: Lock, held_here: frozenset[str] = frozenset()) -> State:
    """Returns the state of the lock's run, as far as one read can tell. held_here: runs whose locks this process holds.

    ended: it released the lock. here: it runs on this machine. gone: it ran on this machine, and its process is dead.
    fresh: on another machine, with a heartbeat within the lease if both clocks agree. unclear: only watching for heartbeats
    can tell whether it is alive. damaged: the file cannot be parsed.
    """
    record = lock.record
    if record is None:
        return "damaged"
    if record.ended:
        return "ended"
    if record.machine == this_machine() != "":
        if record.pid == os.getpid():
            return "here" if record.run in held_here else "gone"
        running = is_running(record.pid, record.started)
        return "unclear" if running is None else "here" if running else "gone"
    return "fresh" if abs(time.time() - record.beat) < LEASE_S else "unclear"
