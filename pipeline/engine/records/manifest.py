"""Files that describe a step: `_step.json`, written before its first shard, and `manifest.json`, written last."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pyarrow as pa

from vlpipe.pipeline.engine.records.receipts import (
    Receipt,
    damaged,
    digest_shards,
    sum_counts,
    write_receipts,
)
from vlpipe.pipeline.engine.records.step_keys import StepKeys
from vlpipe.pipeline.shard import reference_columns
from vlpipe.pipeline.stage import GatherStage, Stage
from vlpipe.pipeline.storage.checksummed_json import read_sealed, write_sealed
from vlpipe.pipeline.storage.digests import sha256_json, tree_digest
from vlpipe.pipeline.storage.file_names import STEP_FILE
from vlpipe.pipeline.storage.store import Store, sha256_file


@dataclass(frozen=True, kw_only=True, slots=True)
class StepFile:
    """Contents of `_step.json`: the step that this folder belongs to."""

    step: str
    use: str
    identity: tuple[str | int, ...]
    step_key: str
    stage_key: str
    params: Mapping[str, Any]
    files: Mapping[str, str]
    torch_threads: int
    shard_rows: int
    inputs: tuple[str, ...]  # folders
    schema: tuple[str, ...]
    references: tuple[str, ...]  # columns that hold ids of other rows
    artifact_references: Mapping[str, Sequence[str]]  # the same for Parquet artifacts, by file name


def write_step_file(store: Store, keyed: StepKeys, inputs: tuple[str, ...], schema: pa.Schema) -> None:
    """Writes `_step.json` unless it already has this content. inputs: folders of the upstream steps."""
    path = f"{keyed.folder}/{STEP_FILE}"
    step = keyed.step
    value = StepFile(
        step=step.name,
        use=step.use,
        identity=keyed.identity,
        step_key=keyed.step_key,
        stage_key=keyed.stage_key,
        params=step.params,
        files=dict(keyed.files),
        torch_threads=step.torch_threads,
        shard_rows=step.shard_rows,
        inputs=inputs,
        schema=schema_lines(schema),
        references=reference_columns(schema),
        artifact_references=artifact_references(step.stage),
    )
    if read_step_file(store, keyed.folder) != _json(value):
        write_sealed(store, path, asdict(value))


def _json(value: StepFile) -> dict[str, Any]:
    plain = asdict(value)
    lists = {name: list(plain[name]) for name in ("identity", "inputs", "schema", "references")}
    return {**plain, **lists}


def artifact_references(stage: Stage) -> dict[str, list[str]]:
    """Returns artifact file name -> its columns that hold ids of rows, as a gather stage declares them."""
    declared = stage.ARTIFACT_REFERENCES if isinstance(stage, GatherStage) else {}
    return {name: list(columns) for name, columns in sorted(declared.items())}


def read_step_file(store: Store, folder: str) -> Mapping[str, Any] | None:
    """Returns the contents of `_step.json`; None if it does not exist (yet). Raises VlpipeError if it is damaged."""
    path = f"{folder}/{STEP_FILE}"
    if not store.exists(path):
        return None
    try:
        value = read_sealed(store, path)
        if isinstance(value["step_key"], str) and isinstance(value["stage_key"], str):
            return dict(value)
        raise TypeError("step_key and stage_key are not strings")
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(store, path, error) from error


def schema_lines(schema: pa.Schema) -> tuple[str, ...]:
    """Returns one `name: type` per column."""
    return tuple(f"{f.name}: {f.type}" for f in schema)


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """Contents of `manifest.json`: the record of a finished step.

    inputs_digest: over every shard and artifact it read; shards_digest: over every shard it has; read: parameter ->
    content digest of each file and artifact; sources: hashes of the code that made its shards; artifacts: relative
    path -> sha256.
    """

    step: str
    use: str
    identity: tuple[str | int, ...]
    step_key: str
    stage_key: str
    inputs_digest: str
    shards_digest: str
    inputs: tuple[str, ...]  # folders
    params: Mapping[str, Any]
    files: Mapping[str, str]
    read: Mapping[str, str]
    sources: tuple[str, ...]
    schema: tuple[str, ...]
    num_shards: int
    rows_in: int
    rows_out: int
    bytes: int
    rejects: Mapping[str, int]
    artifacts: Mapping[str, str]
    versions: Mapping[str, str]
    forgotten: int = 0  # input rows forgotten since then; its artifacts still reflect them
    counts: Mapping[str, int] = field(default_factory=dict)
    copies: bool = False  # `Stage.COPIES`
    references: tuple[str, ...] = ()  # columns that hold ids of other rows
    artifact_references: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def artifact_digest(self, path: str) -> str | None:
        """Returns the digest of one artifact file, or of a folder of artifacts; None if there is none of that name."""
        path = path.strip("/")
        if path in self.artifacts:
            return self.artifacts[path]
        below = f"{path}/" if path else ""
        under = {name.removeprefix(below): d for name, d in self.artifacts.items() if name.startswith(below)}
        return tree_digest(under) if under else None


def write_manifest(store: Store, folder: str, manifest: Manifest, receipts: Sequence[Receipt]) -> None:
    """Makes the step's files durable, then writes `_shards.parquet`, then `manifest.json`, which marks the step as done."""
    store.sync(folder, f"{folder}/_receipts", f"{folder}/_rejects")
    write_receipts(store, f"{folder}/_shards.parquet", receipts)
    write_sealed(store, f"{folder}/manifest.json", asdict(manifest))


def read_manifest(store: Store, folder: str) -> Manifest | None:
    """Returns the manifest; None if the step is not done. Raises VlpipeError if it is damaged."""
    path = f"{folder}/manifest.json"
    if not store.exists(path):
        return None
    try:
        return manifest_from_json(read_sealed(store, path))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(store, path, error) from error


def manifest_from_json(value: Mapping[str, Any]) -> Manifest:
    tuples = {name: tuple(value[name]) for name in ("identity", "inputs", "schema", "sources", "references")}
    return Manifest(**{**value, **tuples})


def make_manifest(
    keyed: StepKeys,
    schema: pa.Schema,
    inputs: tuple[str, ...],
    inputs_digest: str,
    read: Mapping[str, str],
    receipts: Sequence[Receipt],
    artifacts: Mapping[str, str],
    sources: Sequence[str] = (),
) -> Manifest:
    """Returns the manifest of a finished step. sources: code hashes of artifacts; those of shards are in `receipts`."""
    rejects: Counter[str] = Counter()
    for receipt in receipts:
        rejects.update(receipt.rejects)
    return Manifest(
        step=keyed.step.name,
        use=keyed.step.use,
        identity=keyed.identity,
        step_key=keyed.step_key,
        stage_key=keyed.stage_key,
        inputs_digest=inputs_digest,
        shards_digest=digest_shards(r.shard for r in receipts),
        inputs=inputs,
        params=keyed.step.params,
        files=dict(keyed.files),
        read=dict(sorted(read.items())),
        sources=tuple(sorted({*(r.source for r in receipts), *sources})),
        schema=schema_lines(schema),
        num_shards=len(receipts),
        rows_in=sum(r.rows_in for r in receipts),
        rows_out=sum(r.shard.num_rows for r in receipts),
        bytes=sum(r.bytes for r in receipts),
        rejects=dict(sorted(rejects.items())),
        artifacts=dict(sorted(artifacts.items())),
        versions={"python": platform.python_version()}
        | {name: installed(name) for name in ("vlpipe", "pyarrow", "torch", "ray")},
        counts=sum_counts(receipts),
        copies=isinstance(keyed.step.stage, GatherStage) and keyed.step.stage.COPIES,
        references=reference_columns(schema),
        artifact_references=artifact_references(keyed.step.stage),
    )


def installed(name: str) -> str:
    """Returns the version of an installed distribution, or `not installed`."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def digest_inputs(shards_digests: Sequence[str], artifacts_digest: str) -> str:
    """Returns a digest over everything a step reads: `Manifest.shards_digest` of each upstream step, and its artifacts."""
    return sha256_json("inputs", list(shards_digests), artifacts_digest)


def digest_artifacts(read: Mapping[str, str]) -> str:
    """Returns a digest over `read` (parameter -> digest of a file or artifact that rows depend on); empty if `read` is."""
    return sha256_json("artifacts", sorted(read.items())) if read else ""


def hash_folder(folder: str) -> dict[str, str]:
    """Returns relative path -> sha256 of every file below a local folder."""
    found: dict[str, str] = {}
    for sub, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(sub, name)
            found[os.path.relpath(path, folder)] = sha256_file(path)
    return dict(sorted(found.items()))
