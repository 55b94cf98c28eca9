"""A planned step: its keys, its state on disk, and what it reads. The runner runs planned steps; `plan` makes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from vlpipe.pipeline.engine.records.manifest import Manifest, digest_artifacts, digest_inputs, read_manifest
from vlpipe.pipeline.engine.records.receipts import Receipt, read_receipts, read_unfinished
from vlpipe.pipeline.engine.records.step_keys import StepKeys
from vlpipe.pipeline.engine.worker.gather import part_sources
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File, ListFile, files_of, replace_files
from vlpipe.pipeline.shard import Shard
from vlpipe.pipeline.stage import Dataset, GatherStage, MapStage
from vlpipe.pipeline.storage.store import Store


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


def is_gather(one: PlannedStep) -> bool:
    return isinstance(one.keyed.step.stage, GatherStage)


def fans_out(one: PlannedStep) -> bool:
    """Returns True for a map step whose output rows are children of its input rows."""
    return isinstance(one.keyed.step.stage, MapStage) and one.keyed.step.stage.FAN_OUT


def launches(one: PlannedStep) -> bool:
    """Returns True for a gather step that computes in `job.launch`, such as a training."""
    return isinstance(one.keyed.step.stage, GatherStage) and one.keyed.step.stage.LAUNCHES


def look(one: PlannedStep, store: Store, *, strict: bool = False) -> None:
    """Decides whether the step is done. If so, sets its manifest; else sets `found` and why it is not done as `reason`.

    strict: a step that other code made is not done.
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
    one.reason = f"step {waiting[0]!r} runs" if waiting else _progress(one, manifest)


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
