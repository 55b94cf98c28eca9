"""What a worker does around the rows of a stage. Each task carries it; `assembly` says what a run gets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

import pyarrow as pa

from vlpipe.pipeline.service import Address
from vlpipe.pipeline.shard import Reject
from vlpipe.pipeline.stage import MapStage, Stage, Work
from vlpipe.pipeline.steps.step import Resources
from vlpipe.pipeline.storage.store import Store

S = TypeVar("S", bound=Stage)


class Excluded(Protocol):
    """Rows that may not enter the root, such as forgotten ones. False if there are none."""

    def __bool__(self) -> bool: ...

    def split(self, rows: pa.Table) -> tuple[pa.Table, list[Reject]]:
        """Returns the rows that may enter, and a reject for each of the others."""


class Hooks(Protocol):
    """Called by `map_shard` and `gather`. Picklable, because tasks are sent to other processes."""

    def reading(self, store: Store, resources: Resources) -> Store:
        """Returns the store as workers with these resources read it, maybe from copies on their disk."""

    def running_code(self, stage: Stage) -> str:
        """Returns the hash of the stage's code that this process runs. Called before any of it runs."""

    def recorded_code(self, stage: Stage) -> str:
        """Returns the same when the work is done; a text that equals no hash if a file was edited meanwhile."""

    def opened(
        self,
        stage: MapStage,
        torch_threads: int,
        shared: Address | None,
        *,
        isolate: bool,
        deadline_s: float | None,
    ) -> AbstractContextManager[Work]:
        """Opens the stage's function. isolate: in a process of its own, as with a deadline, which is in seconds per call."""

    def prepared(self, stage: S, torch_threads: int) -> S:
        """Returns the stage with files that can be read here; sets the number of threads of this process."""

    def captured(self, store: Store, rel: str) -> AbstractContextManager[None]:
        """Within this context, what the stage prints goes to file `rel` of the root."""

    def saying(self, store: Store, folder: str) -> Callable[[str], None]:
        """Returns a function that shows the user a line of a gather step."""

    def noted(self, store: Store, folder: str, index: int, batches: Iterator[pa.Table]) -> Iterator[pa.Table]:
        """Yields the batches of a shard and records how far it is."""

    def excluded(self, store: Store) -> Excluded:
        """Returns which rows may not enter the root."""
