"""Locks as tests write them: records of runs that are dead or elsewhere, and a short lease."""

import dataclasses
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from moto_s3 import S3, s3, s3_server  # noqa: F401

from vlpipe.pipeline.engine.locking import lock, lock_file
from vlpipe.pipeline.engine.locking.lock_file import Record, rel_of
from vlpipe.pipeline.engine.locking.processes import this_machine
from vlpipe.pipeline.storage.store import Store

DEAD_PID = 2**22 + 1  # no Linux has so many
ELSEWHERE = {"host": "elsewhere", "machine": "elsewhere"}


def record(**changes: Any) -> Record:
    """A run's that was killed on this machine."""
    found = Record(
        run=uuid.uuid4().hex, host="here", machine=this_machine(), pid=DEAD_PID, started="1", beat=time.time()
    )
    return dataclasses.replace(found, **changes)


def locks(root: Store) -> list[str]:
    """The lock files, without one that a heartbeat is writing."""
    return [name for name in root.list("_lock") if not name.endswith(".part")]


def put(store: Store, one: Record | bytes, number: int = 1) -> None:
    store.write_bytes(rel_of(number), one if isinstance(one, bytes) else one.to_bytes())


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease of a second."""
    for module, name, value in (
        (lock, "LEASE_S", 1.0),
        (lock_file, "LEASE_S", 1.0),
        (lock, "BEAT_S", 0.1),
        (lock, "RETRY_S", 0.05),
        (lock, "LOOK_S", 0.05),
    ):
        monkeypatch.setattr(module, name, value)


@pytest.fixture
def root(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "root"))
