"""The hooks of a run's workers: hashes of code, processes of their own, local files, captured output, forgotten rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa

from vlpipe.pipeline.engine.records.forgotten import Forgotten, read_forgotten
from vlpipe.pipeline.engine.records.progress_notes import noted
from vlpipe.pipeline.engine.records.source_hash import recorded_hash, running_source
from vlpipe.pipeline.engine.worker.captured_output import output_in, say_to
from vlpipe.pipeline.engine.worker.child_process import isolated
from vlpipe.pipeline.engine.worker.local_files import here
from vlpipe.pipeline.engine.worker.open_stage import opened, set_threads
from vlpipe.pipeline.service import Address
from vlpipe.pipeline.stage import MapStage, Stage, Work
from vlpipe.pipeline.steps.step import Resources
from vlpipe.pipeline.storage.local_copies import CopyingStore
from vlpipe.pipeline.storage.store import Store

S = TypeVar("S", bound=Stage)


@dataclass(frozen=True)
class WorkerHooks:
    """See `worker.hooks.Hooks`."""

    def reading(self, store: Store, resources: Resources) -> Store:
        return CopyingStore(store.url, store.fence) if resources.local_copies else store

    def running_code(self, stage: Stage) -> str:
        return running_source(stage).hash

    def recorded_code(self, stage: Stage) -> str:
        return recorded_hash(stage)

    def opened(
        self,
        stage: MapStage,
        torch_threads: int,
        shared: Address | None,
        *,
        isolate: bool,
        deadline_s: float | None,
    ) -> AbstractContextManager[Work]:
        if isolate or deadline_s is not None:
            return isolated(stage, torch_threads, shared, deadline_s)
        return opened(stage, torch_threads, shared)

    def prepared(self, stage: S, torch_threads: int) -> S:
        set_threads(stage, torch_threads)
        return here(stage)

    def captured(self, store: Store, rel: str) -> AbstractContextManager[None]:
        return output_in(store, rel)

    def saying(self, store: Store, folder: str) -> Callable[[str], None]:
        return say_to(store, folder)

    def noted(self, store: Store, folder: str, index: int, batches: Iterator[pa.Table]) -> Iterator[pa.Table]:
        return noted(store, folder, index, batches)

    def excluded(self, store: Store) -> Forgotten:
        return read_forgotten(store)
