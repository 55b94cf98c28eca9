"""The lock's files, `_lock/000042.json`: each run makes the next number, and the highest number counts.

No name is ever used twice: the file of the last run stays, and says that it has ended. So who takes over from a dead run
touches nothing of it; all he does is make the next file, which exactly one can.
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
LEASE_S = 60.0  # a run that gave no sign of life for so long has stopped itself
FILE = re.compile(r"(\d{6,})\.json")

State = Literal["ended", "here", "gone", "fresh", "unclear", "damaged"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """Who holds the root, or held it last. `beat`: when it last gave a sign of life, by its own clock."""

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
    """The file that counts. `record` is None when it cannot be read."""

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
    """All of them, the one that counts last. Others are left of runs that died while they looked."""
    names = (name for name in store.list(FOLDER) if FILE.fullmatch(name))
    return sorted((f"{FOLDER}/{name}" for name in names), key=number_of)


def newest(store: Store) -> Lock | None:
    """The file that counts; None in a root in which nothing ever ran."""
    while found := lock_files(store):
        try:
            content = store.read_bytes(found[-1])
        except FileNotFoundError:  # a newer one is there now
            continue
        return Lock(rel=found[-1], content=content, record=parse(content))
    return None


def parse(content: bytes) -> Record | None:
    """The record, or None when it is none. Keys that another vlpipe added do no harm."""
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
    """What can be said of it at one look. `held_here`: runs that this very process holds roots for.

    ended: it ended well. here: it runs on this machine. gone: it ran on this machine, and its process is dead.
    fresh: of another machine, which gave a sign of life within the lease if its clock and ours agree.
    unclear: of another machine, and only time will tell; damaged: it cannot be read.
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
