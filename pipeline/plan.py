"""What would run, and why: every step against what lies on disk. Reads one object per finished step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.gather import ListRows
from vlpipe.pipeline.keys import FileDigests, Keyed, key_step, sha256_json
from vlpipe.pipeline.receipt import Manifest, Receipt, digest_inputs, read_manifest, read_receipts
from vlpipe.pipeline.shard import Shard
from vlpipe.pipeline.stage import Dataset, File, GatherStage, ListFile, MapStage, SourceStage
from vlpipe.pipeline.store import Store
from vlpipe.pipeline.workflow import Step, Workflow, files_of, replace_files, schemas

RECORD = "_steps.json"  # what each step was when it last ran: for reasons, never for decisions


@dataclass
class Planned:
    """A step and what is known of it. `reason` is why it runs; empty when it is done."""

    keyed: Keyed
    above: tuple[Planned, ...]
    artifact_steps: tuple[Planned, ...]
    schema_in: pa.Schema
    schema_out: pa.Schema
    reason: str = ""
    warning: str = ""
    manifest: Manifest | None = None
    receipts: list[Receipt] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.keyed.step.name

    @property
    def folder(self) -> str:
        return self.keyed.folder

    @property
    def is_done(self) -> bool:
        return self.manifest is not None

    @property
    def shards(self) -> tuple[Shard, ...]:
        return tuple(r.shard for r in self.receipts)

    def dataset(self, store: Store) -> Dataset:
        return Dataset(store, self.name, self.schema_out, self.shards)

    def input_shards(self) -> list[Shard]:
        return [shard for step in self.above for shard in step.shards]

    def finish(self, manifest: Manifest, receipts: list[Receipt]) -> None:
        self.manifest, self.receipts, self.reason = manifest, receipts, ""


def expand(steps: Sequence[Step]) -> list[Step]:
    """A source stage becomes two steps: `NAME.rows` lists its rows, `NAME` works on them."""
    out: list[Step] = []
    for step in steps:
        if isinstance(step.stage, SourceStage):
            rows = f"{step.name}.rows"
            out.append(dataclasses.replace(step, name=rows, stage=ListRows(source=step.stage), inputs=()))
            step = dataclasses.replace(step, inputs=(rows,))
        out.append(step)
    return out


def plan(workflow: Workflow, store: Store, until: str | None = None) -> list[Planned]:
    """Every step in file order, done ones with their receipts. `until`: the last step wanted, with what it needs."""
    chain = schemas(workflow)
    digests = FileDigests(store)
    record: dict[str, Any] = store.read_json(RECORD) if store.exists(RECORD) else {}
    by_name: dict[str, Planned] = {}
    for step in expand(workflow.steps):
        keyed = key_step(step, {name: p.keyed for name, p in by_name.items()}, digests)
        above = tuple(by_name[name] for name in step.inputs)
        files = {f.step for _, f in files_of(step.stage) if f.step}
        one = Planned(
            keyed=keyed,
            above=above,
            artifact_steps=tuple(by_name[name] for name in sorted(files)),
            schema_in=above[0].schema_out if above else pa.schema([]),
            schema_out=step.stage.schema(pa.schema([]))
            if isinstance(step.stage, ListRows)
            else chain[step.name],
        )
        look(one, store, record.get(step.name))
        by_name[step.name] = one
    if store.exists(""):  # a plan makes no root
        digests.save()
    wanted = list(by_name.values())
    if until is not None:
        needed = _needed(by_name[workflow.step(until).name])
        wanted = [p for p in wanted if p.name in needed]
    return wanted


def _needed(last: Planned) -> set[str]:
    names = {last.name}
    for one in (*last.above, *last.artifact_steps):
        names |= _needed(one)
    return names


def look(one: Planned, store: Store, before: Mapping[str, Any] | None = None) -> None:
    """Is the step done? If not, what is the first reason."""
    waiting = [p.name for p in (*one.above, *one.artifact_steps) if not p.is_done]
    manifest = None if waiting else read_manifest(store, one.folder)
    if manifest is not None and manifest.inputs_digest == inputs_digest(one):
        one.finish(manifest, read_receipts(store, one.folder))
        if manifest.source != one.keyed.source:
            one.warning = "its source changed, its VERSION did not; raise VERSION if the rows may differ"
        return
    one.reason = why(one, before) or (
        f"step {waiting[0]!r} runs" if waiting else _progress(one, store, manifest)
    )


def _progress(one: Planned, store: Store, manifest: Manifest | None) -> str:
    if manifest is not None:
        return "its input changed"
    have = len(store.list(f"{one.folder}/_receipts"))
    return f"{have} shard(s) done, it goes on" if have else "not run yet"


def inputs_digest(one: Planned) -> str:
    return digest_inputs(one.input_shards(), artifacts_digest(one))


def artifacts_digest(one: Planned) -> str:
    """Digest over the artifacts the rows depend on; what only lists rows counts through the rows it listed."""
    files = [
        f
        for _, f in resolved_files(one)
        if not (isinstance(f, ListFile) and isinstance(one.keyed.step.stage, MapStage))
    ]
    return sha256_json(sorted(f.digest for f in files)) if files else ""


def resolved_files(one: Planned, store: Store | None = None) -> list[tuple[str, File]]:
    """Every file parameter with its content digest; with a store, with a path to read as well."""
    digests = dict(one.keyed.files)
    return [
        (name, _resolve(one, name, file, digests, store)) for name, file in files_of(one.keyed.step.stage)
    ]


def _resolve(one: Planned, name: str, file: File, digests: Mapping[str, str], store: Store | None) -> File:
    if file.step is None:
        return dataclasses.replace(file, digest=digests[name])
    maker = next(p for p in one.artifact_steps if p.name == file.step)
    assert maker.manifest is not None
    digest = maker.manifest.artifact_digest(file.path)
    if digest is None:
        have = ", ".join(sorted(maker.manifest.artifacts)[:8]) or "nothing"
        raise VlpipeError(
            f"{one.name}.{name}: step {file.step!r} has no artifact {file.path!r}; it has {have}"
        )
    rel = f"{maker.folder}/artifacts/{file.path}".rstrip("/")
    where = "" if store is None else store.path(rel) if store.is_local else f"{store.url.rstrip('/')}/{rel}"
    return dataclasses.replace(file, path=where or file.path, digest=digest)


def resolve_stage(one: Planned, store: Store) -> Any:
    """The stage with readable paths in its file parameters."""
    files = dict(resolved_files(one, store))
    return replace_files(one.keyed.step.stage, lambda name, _: files[name])


def why(one: Planned, before: Mapping[str, Any] | None) -> str:
    """The first thing that differs from when the step last ran: its own, before what is above it."""
    if before is None or before["step_key"] == one.keyed.step_key:
        return ""
    step = one.keyed.step
    if before["use"] != step.use:
        return f"use changed {before['use']} -> {step.use}"
    if before["version"] != step.stage.VERSION:
        return f"VERSION of {step.use} changed {before['version']} -> {step.stage.VERSION}"
    changed = _changed_parameter(before["params"], step.params, step.stage.NOT_IN_KEY)
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
    return "what is above it changed"


def _changed_parameter(old: Any, new: Any, leave_out: frozenset[str], path: str = "") -> str:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
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


def is_gather(one: Planned) -> bool:
    return isinstance(one.keyed.step.stage, GatherStage)


def remember(steps: Sequence[Planned], store: Store) -> None:
    """Record what the steps are now, so that the next plan can say what changed."""
    record: dict[str, Any] = store.read_json(RECORD) if store.exists(RECORD) else {}
    for one in steps:
        step = one.keyed.step
        record[step.name] = {
            "step_key": one.keyed.step_key,
            "folder": one.folder,
            "use": step.use,
            "version": step.stage.VERSION,
            "params": step.params,
            "files": dict(one.keyed.files),
            "torch_threads": step.torch_threads,
        }
    store.write_json(RECORD, record)
