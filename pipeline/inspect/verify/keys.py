"""Checks a step's keys for `verify`: recomputes them from the recorded parameters, if the stage's code is unchanged."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from pydantic import TypeAdapter

from vlpipe.pipeline.engine.records.keys import keys_of
from vlpipe.pipeline.engine.records.manifest import StepFile
from vlpipe.pipeline.engine.records.source_hash import source_hash
from vlpipe.pipeline.engine.worker.gather import ListRows
from vlpipe.pipeline.inspect.on_disk import folder_now, step_folders
from vlpipe.pipeline.inspect.verify.problems import BROKEN, Problem
from vlpipe.pipeline.inspect.verify.records import Records, step_file
from vlpipe.pipeline.stage import Stage
from vlpipe.pipeline.storage.file_names import STEP_FILE
from vlpipe.pipeline.storage.store import Store
from vlpipe.pipeline.workflow.load import STAGES
from vlpipe.pipeline.workflow.params import find, replace_files


def key_problems(store: Store, found: Records) -> Iterator[Problem]:
    """Yields problems for recorded keys of a finished step that differ from the recomputed ones.

    Steps whose code has changed are skipped, because defaults of parameters may have changed with it.
    """
    said, manifest = found.step, found.manifest
    if said is None or manifest is None:
        return
    stage = _stage(said)
    if stage is None or list(manifest.sources) != [source_hash(stage)]:
        return
    folders = step_folders(store)
    above = [step_file(store, folder_now(name, folders)) for name in said.inputs]
    if None in above:
        return
    stage = replace_files(
        stage, lambda name, file: dataclasses.replace(file, digest=said.files.get(name, ""))
    )
    inputs = [one.step_key for one in above if one is not None]
    keys = keys_of(stage, said.identity, inputs, said.torch_threads, said.shard_rows)
    for name, key in zip(("step_key", "stage_key"), keys, strict=True):
        if getattr(said, name) != key:
            text = f"its {name} does not match its parameters: it is {getattr(said, name)[:16]}..., they give {key[:16]}..."
            yield Problem(f"{found.folder}/{STEP_FILE}", "damaged", text)


def _stage(said: StepFile) -> Stage | None:
    """Returns the stage with the recorded parameters; None if it cannot be built here (a user's own stage, say)."""
    try:
        cls: Any = find(said.use, STAGES)
        stage: Stage = TypeAdapter(cls).validate_python(dict(said.params))
        if said.identity[0] == "rows":
            stage = ListRows(source=stage)  # type: ignore[arg-type]  # only a source is listed
        return stage
    except (*BROKEN, ImportError):
        return None
