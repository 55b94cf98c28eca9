"""What a run is put together from, beside its steps and its executor. `assembly` makes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from vlpipe.pipeline.engine.records.manifest import Manifest
from vlpipe.pipeline.engine.records.receipts import MadeFrom, Receipt
from vlpipe.pipeline.engine.records.step_keys import StepKeys
from vlpipe.pipeline.engine.worker.hooks import Hooks
from vlpipe.pipeline.shard import Heavy


class Reuse(Protocol):
    """Finds finished shards and gather steps elsewhere in the root, and adopts them into a step's folder."""

    def adopt(
        self, keyed: StepKeys, made_from: MadeFrom, index: int, heavy: tuple[Heavy, ...]
    ) -> Receipt | None:
        """Returns the receipt of shard `index` of the step, made from exactly these inputs; None if there is none.

        heavy: where its heavy columns are stored now.
        """

    def adopt_step(self, keyed: StepKeys, inputs_digest: str) -> tuple[Manifest, list[Receipt]] | None:
        """Returns the manifest of the gather step that was adopted, and the new receipts; None if there is none."""

    def note(self, stage_key: str, folder: str) -> None:
        """Called when the run has finished a step: its folder may be adopted from."""


@dataclass(frozen=True)
class Parts:
    """hooks: of the workers; reuse: None to make all shards of the steps that are not in their folders.

    check_lock: called in every iteration; raises LockLost if another run has taken over the root. strict: shards and gather
    steps that a different version of the code made are made again, not reused. Steps that are already done are not checked:
    `vlpipe run --strict` refuses them before.
    """

    hooks: Hooks
    reuse: Reuse | None
    check_lock: Callable[[], None]
    strict: bool = False
