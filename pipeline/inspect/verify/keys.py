"""Checks a step's keys for `verify`: recomputes them from the recorded parameters, if the stage's code is unchanged."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from vlpipe.pipeline.engine.list_rows import SAMPLE_ROWS, ListRows
from vlpipe.pipeline.engine.records.keys import keys_of
from vlpipe.pipeline.engine.records.manifest import StepFile
from vlpipe.pipeline.files import replace_files
from vlpipe.pipeline.inspect.on_disk import folder_now
from vlpipe.pipeline.inspect.verify.problems import BROKEN, Problem
from vlpipe.pipeline.inspect.verify.records import Records
from vlpipe.pipeline.inspect.verify.steps import Steps
from vlpipe.pipeline.stage import Stage
from vlpipe.pipeline.steps.canonical import from_order
from vlpipe.pipeline.storage.file_names import STEP_FILE
from vlpipe.pipeline.workflow.load import STAGES
from vlpipe.pipeline.workflow.params import adapter, find


def key_problems(steps: Steps, found: Records) -> Iterator[Problem]:
    """Yields problems for recorded keys of a finished step that differ from the recomputed ones.

    Steps whose code has changed are skipped, because defaults of parameters may have changed with it.
    """
    said, manifest = found.step, found.manifest
    if said is None or manifest is None:
        return
    stage = _stage(said)
    if stage is None or list(manifest.sources) != [steps.sources.hash(stage)]:
        return
    above = [steps.step_file(folder_now(name, steps.folders)) for name in said.inputs]
    inputs = [one.step_key for one in above if not isinstance(one, Problem)]
    if len(inputs) < len(above):
        return
    stage = replace_files(
        stage, lambda name, file: dataclasses.replace(file, digest=said.files.get(name, ""))
    )
    names = [folder.rpartition("-")[0] for folder in said.inputs]
    keys = keys_of(stage, said.identity, inputs, said.torch_threads, said.shard_rows, names)
    for name, key in zip(("step_key", "stage_key"), keys, strict=True):
        if getattr(said, name) != key:
            text = f"its {name} does not match its parameters: it is {getattr(said, name)[:16]}..., they give {key[:16]}..."
            yield Problem(f"{found.folder}/{STEP_FILE}", "damaged", text)


def _stage(said: StepFile) -> Stage | None:
    """Returns the stage with the recorded parameters; None if it cannot be built here (a user's own stage, say)."""
    try:
        params = dict(said.params)
        max_rows = params.pop(SAMPLE_ROWS, None) if said.identity[0] == "rows" else None
        cls: Any = find(said.use, STAGES, hint=False)
        given = {f.name: params[f.name] for f in dataclasses.fields(cls) if f.init and f.name in params}
        given |= {name: from_order(given[name]) for name in cls.ORDERED if name in given}
        stage: Stage = adapter(cls).validate_python(given)
        if said.identity[0] == "rows":
            stage = ListRows(source=stage, max_rows=max_rows)  # type: ignore[arg-type]  # only a source is listed
        return stage
    except (*BROKEN, ImportError):
        return None
