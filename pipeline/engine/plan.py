"""Plans a run: which steps have to run, and why. Compares every step with its files; reads one file per finished step."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from vlpipe.pipeline.engine.list_rows import SAMPLE_ROWS, ListRows
from vlpipe.pipeline.engine.planned import PlannedStep, is_gather, look
from vlpipe.pipeline.engine.records.file_digests import FileDigests
from vlpipe.pipeline.engine.records.keys import key_step
from vlpipe.pipeline.engine.records.manifest import read_step_file
from vlpipe.pipeline.engine.records.parsed_source import save_parsed
from vlpipe.pipeline.engine.records.receipts import STEP_FOLDER
from vlpipe.pipeline.engine.records.root_format import check_format
from vlpipe.pipeline.engine.records.source_hash import Sources
from vlpipe.pipeline.engine.records.step_keys import StepKeys
from vlpipe.pipeline.errors import VlpipeError, VlpipeWarning
from vlpipe.pipeline.files import files_of
from vlpipe.pipeline.stage import MapStage, SourceStage
from vlpipe.pipeline.steps.canonical import ORDER, left_out, recorded
from vlpipe.pipeline.steps.checked import CheckedWorkflow, find_steps
from vlpipe.pipeline.steps.columns import schemas
from vlpipe.pipeline.steps.step import Step
from vlpipe.pipeline.storage.checksummed_json import read_sealed, write_sealed
from vlpipe.pipeline.storage.store import Store

RECORD = "_steps.json"  # each step as of its last run; used to explain why a step runs, not to decide whether


def expand(steps: Sequence[Step], sample: int | None = None) -> list[Step]:
    """Returns the steps, each source stage as two steps: `NAME.rows` lists its rows, `NAME` processes them.

    sample: list the rows of so many shards only, and run stages as `Stage.sampled` returns them.
    """
    out: list[Step] = []
    for step in steps:
        step = step if sample is None else _sampled(step)
        if isinstance(step.stage, SourceStage):
            rows = f"{step.name}.rows"
            max_rows = None if sample is None else sample * step.shard_rows
            lister = ListRows(source=step.stage, max_rows=max_rows)
            params = step.params if max_rows is None else {**step.params, SAMPLE_ROWS: max_rows}
            out.append(dataclasses.replace(step, name=rows, stage=lister, inputs=(), params=params))
            step = dataclasses.replace(step, inputs=(rows,))
        out.append(step)
    return out


def _sampled(step: Step) -> Step:
    stage = step.stage.sampled()
    if stage is step.stage:
        return step
    params = {name: recorded(stage, name) for name in step.params}
    return dataclasses.replace(step, stage=stage, params=params)


def plan(
    workflow: CheckedWorkflow, store: Store, until: str | None = None, sample: int | None = None
) -> list[PlannedStep]:
    """Returns the planned steps, in file order. Reads the manifests of finished steps.

    until: keep only this step and the steps it needs. sample: of `expand`. Raises VlpipeError if the root has another format
    number.
    """
    check_format(store, old=any(_is_step(store, name) for name in store.list()))
    chain = schemas(workflow)
    digests, sources = FileDigests(store), Sources()
    record = read_record(store)
    by_name: dict[str, PlannedStep] = {}
    for step in expand(workflow.steps, sample):
        keyed = key_step(step, {name: p.keyed for name, p in by_name.items()}, digests, sources)
        keyed = _in_folder(keyed, store)
        above = tuple(by_name[name] for name in step.inputs)
        files = {f.step for _, f in files_of(step.stage) if f.step}
        one = PlannedStep(
            keyed=keyed,
            above=above,
            artifact_steps=tuple(by_name[name] for name in sorted(files)),
            schema_in=above[0].schema_out if above else pa.schema([]),
            schema_out=step.stage.schema(pa.schema([]))
            if isinstance(step.stage, ListRows)
            else chain[step.name],
            store=store,
        )
        look(one, store)
        if not one.is_done:
            one.reason = why(one, record.get(step.name)) or one.reason
        by_name[step.name] = one
    digests.save()
    save_parsed()
    wanted = list(by_name.values())
    if until is not None:
        last = find_steps(workflow.steps, until, workflow.path)
        needed = {name for one in last for name in _needed(by_name[one.name])}
        wanted = [p for p in wanted if p.name in needed]
    return wanted


def _is_step(store: Store, name: str) -> bool:
    return bool(STEP_FOLDER.fullmatch(name)) and (
        store.exists(f"{name}/manifest.json") or store.exists(f"{name}/_receipts")
    )


def _in_folder(keyed: StepKeys, store: Store) -> StepKeys:
    """Returns the step with its folder's name, `NAME-` and 8 digits of its key; 16 if another key shares the first 8."""
    for digits in (8, 16):
        folder = f"{keyed.step.name}-{keyed.step_key[:digits]}"
        recorded = read_step_file(store, folder) or {}
        if recorded.get("step_key", keyed.step_key) == keyed.step_key:
            return dataclasses.replace(keyed, folder=folder)
    raise VlpipeError(
        f"{store.path(folder)} already holds the results of another step; rename step {keyed.step.name!r}"
    )


def _needed(last: PlannedStep) -> set[str]:
    names = {last.name}
    for one in (*last.above, *last.artifact_steps):
        names |= _needed(one)
    return names


def _versions(identity: Sequence[str | int]) -> str:
    return ", ".join(str(part) for part in identity[1:-1])


def why(one: PlannedStep, before: Mapping[str, Any] | None) -> str:
    """Returns the first difference from the step's last run, such as `parameter top_p changed 0.9 -> 0.8`.

    Empty if there was no last run, or its key was the same.

    The step's own changes come before upstream ones. before: the step as of its last run, from `read_record`.
    """
    if before is None or before["step_key"] == one.keyed.step_key:
        return ""
    step = one.keyed.step
    if before["identity"][:-1] != list(one.keyed.identity[:-1]):
        if before["use"] == step.use:
            return f"VERSION of a class that its parameters name changed: {_versions(one.keyed.identity) or 'to 1'}"
        return f"use changed {before['use']} -> {step.use}"
    if before["identity"] != list(one.keyed.identity):
        return f"VERSION of {step.use} changed {before['identity'][-1]} -> {one.keyed.identity[-1]}"
    changed = _changed_parameter(before["params"], step.params, left_out(step.stage))
    if changed:
        return changed
    for name, digest in one.keyed.files:
        if before["files"].get(name) != digest and not digest.startswith("step:"):
            return f"the content of {name} changed"
    for maker in (*one.above, *one.artifact_steps):
        if maker.reason:
            return f"step {maker.name!r} runs"
    if before["torch_threads"] != step.torch_threads:
        return f"torch_threads changed {before['torch_threads']} -> {step.torch_threads}"
    reads_names = bool(step.stage.names_in_key(step.inputs))
    return "the names of its inputs changed" if reads_names else "an upstream step changed"


def _changed_parameter(old: Any, new: Any, leave_out: frozenset[str], path: str = "") -> str:
    if isinstance(old, Mapping) and isinstance(new, Mapping) and not {ORDER} & (old.keys() | new.keys()):
        for key in sorted(set(old) | set(new)):
            if not path and key in leave_out:
                continue
            found = _changed_parameter(
                old.get(key), new.get(key), leave_out, f"{path}.{key}" if path else str(key)
            )
            if found:
                return found
        return ""
    return "" if old == new else f"parameter {path} changed {old} -> {new}"


def read_record(store: Store) -> dict[str, Any]:
    """Returns step name -> its keys, parameters and files when it last ran. Empty, with a warning, if damaged."""
    if not store.exists(RECORD):
        return {}
    try:
        record = read_sealed(store, RECORD)
        if all({"identity", "step_key", "params", "files"} <= set(one) for one in record.values()):
            return dict(record)
    except (ValueError, AttributeError, TypeError):
        pass  # handled like a record of the wrong shape
    warnings.warn(
        f"{store.path(RECORD)} is damaged, so the plan cannot show what changed; the next run writes it again",
        VlpipeWarning,
        stacklevel=2,
    )
    return {}


def remember(steps: Sequence[PlannedStep], store: Store) -> None:
    """Records the steps as they are now, so that the next plan can explain what changed, and other commands on this root
    find their folders. Writes nothing if the record says so already."""
    before = read_record(store)
    record = dict(before)
    for one in steps:
        step = one.keyed.step
        record[step.name] = {
            "step_key": one.keyed.step_key,
            "folder": one.folder,
            "use": step.use,
            "identity": list(one.keyed.identity),
            "params": step.params,
            "files": dict(one.keyed.files),
            "torch_threads": step.torch_threads,
            "inputs": [above.folder for above in one.above],
            "gather": is_gather(one),
            "filters": isinstance(one.keyed.step.stage, MapStage) and one.keyed.step.stage.FILTERS,
        }
    if json.loads(json.dumps(record)) != before:
        write_sealed(store, RECORD, record)
