"""Plans a run: which steps have to run, and why. Compares every step with its files; reads one file per finished step."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from vlpipe.pipeline.engine.records.keys import FileDigests, StepKeys, key_step
from vlpipe.pipeline.engine.records.manifest import (
    Manifest,
    check_format,
    digest_artifacts,
    digest_inputs,
    read_manifest,
    read_step_file,
)
from vlpipe.pipeline.engine.records.parsed_source import save_parsed
from vlpipe.pipeline.engine.records.receipts import STEP_FOLDER, Receipt, read_receipts, read_unfinished
from vlpipe.pipeline.engine.records.source_hash import Sources
from vlpipe.pipeline.engine.worker.gather import SAMPLE_ROWS, ListRows, part_sources
from vlpipe.pipeline.errors import VlpipeError, VlpipeWarning
from vlpipe.pipeline.files import File, ListFile
from vlpipe.pipeline.shard import Shard
from vlpipe.pipeline.stage import Dataset, GatherStage, MapStage, SourceStage
from vlpipe.pipeline.storage.checksummed_json import read_sealed, write_sealed
from vlpipe.pipeline.storage.store import Store
from vlpipe.pipeline.workflow.load import Workflow, schemas
from vlpipe.pipeline.workflow.params import ORDER, files_of, left_out, recorded, replace_files
from vlpipe.pipeline.workflow.step import Step, find_steps

RECORD = "_steps.json"  # each step as of its last run; used to explain why a step runs, not to decide whether


@dataclass
class PlannedStep:
    """A step and its state on disk. reason: why it has to run; empty if it is done.

    above: steps whose rows it reads; artifact_steps: steps whose artifacts it reads; found: receipts that an unfinished
    step has so far; receipts: all receipts of a finished step, read on first use.
    """

    keyed: StepKeys
    above: tuple[PlannedStep, ...]
    artifact_steps: tuple[PlannedStep, ...]
    schema_in: pa.Schema
    schema_out: pa.Schema
    store: Store
    reason: str = ""
    warning: str = ""
    manifest: Manifest | None = None
    found: dict[int, Receipt] = field(default_factory=dict)
    _receipts: list[Receipt] | None = None

    @property
    def name(self) -> str:
        return self.keyed.step.name

    @property
    def in_cell(self) -> bool:
        return self.keyed.step.in_cell

    @property
    def folder(self) -> str:
        return self.keyed.folder

    @property
    def is_done(self) -> bool:
        return self.manifest is not None

    @property
    def receipts(self) -> list[Receipt]:
        """Receipts of a finished step, in shard order; empty for an unfinished one."""
        if self._receipts is None and self.is_done:
            self._receipts = read_receipts(self.store, self.folder)
        return self._receipts or []

    @property
    def shards(self) -> tuple[Shard, ...]:
        return tuple(r.shard for r in self.receipts)

    def dataset(self, store: Store) -> Dataset:
        return Dataset(store, self.name, self.schema_out, self.shards)

    def finish(self, manifest: Manifest, receipts: list[Receipt] | None = None) -> None:
        """Marks the step as done. receipts: of all its shards, in order; None: read from its folder on first use."""
        self.manifest, self._receipts, self.reason, self.found = manifest, receipts, "", {}

    def undo(self) -> None:
        """Marks the step as not done."""
        self.manifest, self._receipts = None, None

    def let_go(self) -> None:
        """Drops the receipts from memory; the next use reads them again."""
        self._receipts = None


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
    workflow: Workflow, store: Store, until: str | None = None, sample: int | None = None
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
        look(one, store, record.get(step.name))
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


def look(
    one: PlannedStep, store: Store, before: Mapping[str, Any] | None = None, strict: bool = False
) -> None:
    """Decides whether the step is done. If so, sets its manifest; else sets `found` and the first `reason` to run it.

    before: the step as of its last run, from `read_record`. strict: a step that other code made is not done.
    """
    waiting = [p.name for p in (*one.above, *one.artifact_steps) if not p.is_done]
    manifest = read_manifest(store, one.folder)
    if manifest is not None and not waiting and is_made_from(manifest, one):
        one.warning = stale_source(one, manifest.sources)
        if not (strict and one.warning):
            one.finish(manifest)
            return
    sources: set[str] = set()
    if is_gather(one):
        sources = part_sources(store, one.folder)
    elif not one.found:
        one.found = read_unfinished(store, one.folder)
        sources = {r.source for r in one.found.values()}
    one.warning = one.warning or stale_source(one, sources)
    one.reason = why(one, before) or (f"step {waiting[0]!r} runs" if waiting else _progress(one, manifest))


def is_made_from(manifest: Manifest, one: PlannedStep) -> bool:
    """Returns True if the manifest was made from the current inputs. Compares full keys and digests, never names."""
    return (manifest.step_key, manifest.inputs_digest) == (one.keyed.step_key, inputs_digest(one))


def stale_source(one: PlannedStep, sources: Sequence[str] | set[str]) -> str:
    """Returns a warning text if existing rows were made by a different version of the code; empty otherwise.

    sources: hashes of the code that made them.
    """
    if not set(sources) - {one.keyed.source}:
        return ""
    what = "some of its rows were" if one.keyed.source in sources else "it was"
    return f"{what} made by different code with the same VERSION; raise VERSION if the rows may differ"


def _progress(one: PlannedStep, manifest: Manifest | None) -> str:
    if manifest is not None:
        return "its input changed"
    return f"{len(one.found)} shard(s) done, it resumes" if one.found else "not run yet"


def inputs_digest(one: PlannedStep) -> str:
    """Returns a digest over every shard and artifact that the step reads. All upstream steps must be done."""
    shards = [p.manifest.shards_digest for p in one.above if p.manifest is not None]
    assert len(shards) == len(one.above)
    return digest_inputs(shards, artifacts_digest(one))


def artifacts_digest(one: PlannedStep) -> str:
    """Returns a digest over `read_digests`; empty if the step depends on no file or artifact."""
    return digest_artifacts(read_digests(one))


def read_digests(one: PlannedStep) -> dict[str, str]:
    """Returns parameter -> digest of each file and artifact that the rows depend on.

    Excludes parameters in `NOT_IN_KEY`, and list files of a map stage, because its input shards hold the listed rows.
    """
    stage = one.keyed.step.stage
    left_out = stage.NOT_IN_KEY
    return {
        name: f.digest
        for name, f in resolved_files(one)
        if not (isinstance(f, ListFile) and isinstance(stage, MapStage))
        and name.partition(".")[0] not in left_out
    }


def resolved_files(one: PlannedStep, store: Store | None = None) -> list[tuple[str, File]]:
    """Returns (parameter, file with its content digest) pairs; if `store` is given, also with a readable path.

    Steps whose artifacts it reads must be done. Raises VlpipeError if one has no such artifact.
    """
    digests, marks = dict(one.keyed.files), dict(one.keyed.marks)
    return [
        (name, _resolve(one, name, file, digests[name], marks.get(name, ""), store))
        for name, file in files_of(one.keyed.step.stage)
    ]


def _resolve(one: PlannedStep, name: str, file: File, digest: str, mark: str, store: Store | None) -> File:
    if file.step is None:
        return dataclasses.replace(file, digest=digest, mark=mark)
    maker = next(p for p in one.artifact_steps if p.name == file.step)
    assert maker.manifest is not None
    made = maker.manifest.artifact_digest(file.path)
    if made is None:
        have = ", ".join(sorted(maker.manifest.artifacts)[:8]) or "nothing"
        raise VlpipeError(
            f"{one.name}.{name}: step {file.step!r} wrote no artifact {file.path!r}; it wrote {have}"
        )
    rel = f"{maker.folder}/artifacts/{file.path}".rstrip("/")
    where = "" if store is None else store.path(rel) if store.is_local else f"{store.url.rstrip('/')}/{rel}"
    return dataclasses.replace(file, path=where or file.path, digest=made)


def resolve_stage(one: PlannedStep, store: Store) -> Any:
    """Returns the stage with readable paths in its file parameters."""
    files = dict(resolved_files(one, store))
    return replace_files(one.keyed.step.stage, lambda name, _: files[name])


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


def is_gather(one: PlannedStep) -> bool:
    return isinstance(one.keyed.step.stage, GatherStage)


def fans_out(one: PlannedStep) -> bool:
    """Returns True for a map step whose output rows are children of its input rows."""
    return isinstance(one.keyed.step.stage, MapStage) and one.keyed.step.stage.FAN_OUT


def launches(one: PlannedStep) -> bool:
    """Returns True for a gather step that computes in `job.launch`, such as a training."""
    return isinstance(one.keyed.step.stage, GatherStage) and one.keyed.step.stage.LAUNCHES


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
    """Records the steps as they are now, so that the next plan can explain what changed."""
    record = read_record(store)
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
    write_sealed(store, RECORD, record)
