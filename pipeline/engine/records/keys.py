"""Keys identify what a result was made from. They contain no time, host, port, path or secret.

step key: hash of what is declared (the stage's name and VERSION, parameters, digests of files outside the root, keys of
    upstream steps), so it is known before anything runs. The name of the step's folder contains its first digits.
stage key: like the step key, but without upstream steps, files that only list rows, and which step made an artifact. So
    a longer list keeps the shards it shares with the old one.
shard key: sha256(stage key, key of the input shard).
The record of a shard also has the digests of what was actually read (input shard, artifacts), which must match as well.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from vlpipe.pipeline.engine.records.file_digests import FileDigests
from vlpipe.pipeline.engine.records.source_hash import Sources
from vlpipe.pipeline.engine.records.step_keys import StepKeys
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File, ListFile, Listing, Weights, files_of, replace_files
from vlpipe.pipeline.stage import MapStage, Stage
from vlpipe.pipeline.steps.canonical import canonical
from vlpipe.pipeline.steps.step import Step
from vlpipe.pipeline.storage.digests import sha256_json

Stamp = tuple[int, int]  # size in bytes, mtime_ns


def key_params(stage: Stage) -> dict[str, Any]:
    """Returns the parameters that can change rows, as JSON. A file is given by its digest, an artifact by its step's key."""
    params: dict[str, Any] = canonical(stage, _file_in_key, leave_out=True)
    return params


def _file_in_key(file: File) -> dict[str, str]:
    return {"file": file.digest, "path": file.path if file.step else ""}


def key_step(step: Step, above: Mapping[str, StepKeys], digests: FileDigests, sources: Sources) -> StepKeys:
    """Returns the keys of a step. above: keys of its input and artifact steps. Raises VlpipeError if a file is missing."""

    def with_digest(_: str, file: File) -> File:
        if file.step:
            return dataclasses.replace(file, digest=f"step:{above[file.step].step_key}")
        if isinstance(file, Listing):
            return dataclasses.replace(file, digest=sha256_json("listing", file.files()))
        if isinstance(file, Weights) and not os.path.exists(file.path):
            return dataclasses.replace(file, digest=digests.of_hub(file.path, f"{step.name}: "))
        if not os.path.exists(file.path):
            raise VlpipeError(f"{step.name}: {file.path} does not exist")
        return dataclasses.replace(file, digest=digests.of(file.path), mark=digests.mark(file.path))

    step = dataclasses.replace(step, stage=replace_files(step.stage, _absolute))
    stage = replace_files(step.stage, with_digest)
    *names, version = stage.identity(step.use)
    identity = (*names, *sources.versions(step.stage), version)
    inputs = [above[name].step_key for name in step.inputs]
    step_key, stage_key = keys_of(stage, identity, inputs, step.torch_threads, step.shard_rows, step.inputs)
    files = files_of(stage)
    return StepKeys(
        step=step,
        identity=identity,
        step_key=step_key,
        stage_key=stage_key,
        files=tuple((field, f.digest) for field, f in files),
        marks=tuple((field, f.mark) for field, f in files if f.mark),
        source=sources.hash(step.stage),
        folder=f"{step.name}-{step_key[:8]}",
    )


def keys_of(
    stage: Stage,
    identity: Sequence[str | int],
    inputs: Sequence[str],
    torch_threads: int,
    shard_rows: int,
    names: Sequence[str],
) -> tuple[str, str]:
    """Returns (step key, stage key) of a stage whose files have digests. inputs, names: step keys and names of the upstream
    steps."""
    base: list[Any] = [*identity, torch_threads if stage.TORCH else 0]
    if read := list(stage.names_in_key(names)):
        base.append(read)
    rows = 0 if isinstance(stage, MapStage) else shard_rows  # shard size of a gather step
    step_key = sha256_json("step", *base, key_params(stage), list(inputs), rows)
    return step_key, sha256_json("stage", *base, key_params(replace_files(stage, _inner)), rows)


def _absolute(_: str, file: File) -> File:
    """Returns the file with an absolute path: a worker may run in another working directory."""
    if file.step or not file.path or not os.path.exists(file.path):
        return file
    return dataclasses.replace(file, path=os.path.abspath(file.path))


def _inner(_: str, file: File) -> File:
    """Returns a file as it enters the stage key: empty for a list file, without the step for an artifact."""
    if isinstance(file, ListFile):
        return dataclasses.replace(file, digest="", path="")
    return dataclasses.replace(file, digest="") if file.step else file
