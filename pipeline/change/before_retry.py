"""The folder that keeps the shards from before a `retry`; a run removes it once the step is done."""

from __future__ import annotations

from collections.abc import Sequence

from vlpipe.pipeline.engine.planned import PlannedStep
from vlpipe.pipeline.storage.store import Store


def before_folder(one: PlannedStep) -> str:
    """Returns the folder that keeps the shards from before a retry. To the runner it is the folder of an unfinished step."""
    return f"{one.name}.before_retry-{one.keyed.step_key[:8]}"


def clean(steps: Sequence[PlannedStep], store: Store) -> None:
    """Removes the folders that killed retries left behind, for steps that are done."""
    folders = set(store.list())
    for one in steps:
        if one.is_done and before_folder(one) in folders:
            store.remove(before_folder(one))
