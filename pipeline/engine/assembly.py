"""Puts a run together: the runner, with the hooks of its workers, the shards it may adopt, and the lock of its root."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from vlpipe.pipeline.engine.adopt import FinishedShards
from vlpipe.pipeline.engine.executor import Executor, Watcher
from vlpipe.pipeline.engine.local_executor import LocalExecutor
from vlpipe.pipeline.engine.locking.lock import check
from vlpipe.pipeline.engine.parts import Parts
from vlpipe.pipeline.engine.planned import PlannedStep
from vlpipe.pipeline.engine.records.forget_journal import refuse_half_done
from vlpipe.pipeline.engine.records.root_format import write_format
from vlpipe.pipeline.engine.runner import Run
from vlpipe.pipeline.engine.worker_hooks import WorkerHooks
from vlpipe.pipeline.services.server import Services
from vlpipe.pipeline.storage.store import Store


def local_executor() -> LocalExecutor:
    """Returns the executor of `--local`, with a server for the services of its steps."""
    return LocalExecutor(Services())


def new_run(
    steps: Sequence[PlannedStep], store: Store, executor: Executor, watcher: Watcher, strict: bool = False
) -> Run:
    """Returns a run of planned steps; see `Run`. Raises VlpipeError if a `vlpipe forget` was killed in the root."""
    return Run(steps, store, executor, watcher, parts_of(store, strict=strict))


def parts_of(store: Store, *, adopts: bool = True, strict: bool = False) -> Parts:
    """Returns the parts of a run, and marks the root with its format.

    adopts: the run adopts finished shards of other folders; strict: as in `Parts`.
    """
    refuse_half_done(store)
    write_format(store)
    reuse = FinishedShards(store, strict) if adopts else None
    return Parts(WorkerHooks(), reuse, partial(check, store), strict)
