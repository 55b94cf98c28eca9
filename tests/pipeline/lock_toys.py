"""A stage that says when it was at work, and in which process."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from vlpipe.pipeline.stage import MapStage, Work


@dataclass(frozen=True, kw_only=True)
class Noted(MapStage):
    NAME: ClassVar[str] = "lock_toys:Noted"
    file: str
    seconds: float = 0.1
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"file", "seconds"})

    @contextmanager
    def open(self) -> Iterator[Work]:
        def work(table: pa.Table) -> pa.Table:
            began = time.time()
            time.sleep(self.seconds)
            with open(self.file, "a") as file:
                file.write(f"{os.getpid()} {began} {time.time()}\n")
            return table

        yield work


def noted(path: str) -> dict[int, list[tuple[float, float]]]:
    """Process -> when it was at work."""
    found: dict[int, list[tuple[float, float]]] = {}
    if os.path.exists(path):
        with open(path) as file:
            for line in file:
                pid, began, ended = line.split()
                found.setdefault(int(pid), []).append((float(began), float(ended)))
    return found
