"""The steps of a root for `forget`: their folders, files and what they were made from, in topological order."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlpipe.pipeline.engine.records.manifest import Manifest, read_step_file
from vlpipe.pipeline.engine.records.receipts import shard_path
from vlpipe.pipeline.inspect.on_disk import folder_now, read_step, step_folders
from vlpipe.pipeline.storage.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A step's folder, without its receipts, which take half a gigabyte for 100,000 shards.

    shards, rejected: indices of all shards and of those with rejects; columns, inputs, files, params, references,
    artifact_references: from the records of the step, finished or not.
    """

    folder: str
    manifest: Manifest | None
    key: str
    columns: frozenset[str] | None  # None: unknown
    inputs: tuple[str, ...]
    files: Mapping[str, str]
    params: Mapping[str, Any]
    references: tuple[str, ...]
    artifact_references: Mapping[str, Sequence[str]]
    shards: Sequence[int]
    rejected: Sequence[int]

    @property
    def paths(self) -> Iterator[str]:
        """Paths of the step's shards, relative to the root."""
        return (shard_path(self.folder, index) for index in self.shards)

    def may_have(self, *columns: str) -> bool:
        """False if its rows lack one of `columns`, according to its records; then none of its shards need be opened."""
        return self.columns is None or self.columns >= set(columns)

    def above(self, by_key: Mapping[str, str]) -> Iterator[str]:
        """Yields the folders whose rows or artifacts it read. by_key: from `folders_by_key`."""
        yield from self.inputs
        yield from self.makers(by_key)

    def makers(self, by_key: Mapping[str, str]) -> Iterator[str]:
        """Yields the folders whose artifacts it read. by_key: from `folders_by_key`."""
        yield from (by_key[digest] for digest in self.files.values() if digest in by_key)

    def references_of(self, path: str) -> Sequence[str]:
        """Returns the reference columns of a shard or artifact, as dotted paths."""
        _, is_artifact, name = path.partition("/artifacts/")
        return self.artifact_references.get(name, ()) if is_artifact else self.references

    @property
    def artifacts(self) -> list[str]:
        """Paths of the step's Parquet artifacts, relative to the root."""
        return self._artifacts(".parquet")

    @property
    def json_artifacts(self) -> list[str]:
        """Paths of the step's JSON artifacts, relative to the root."""
        return self._artifacts(".json")

    def _artifacts(self, ending: str) -> list[str]:
        names = self.manifest.artifacts if self.manifest else ()
        return [f"{self.folder}/artifacts/{name}" for name in names if name.endswith(ending)]


def in_order(store: Store) -> dict[str, Step]:
    """Returns folder -> step, each after the steps it reads; unfinished steps come last."""
    folders = step_folders(store)
    steps = {folder: _step(store, folder, folders) for folder in folders}
    by_key = folders_by_key(steps)
    ordered: dict[str, Step] = {}

    def put(folder: str) -> None:
        step = steps.get(folder)
        if step is None or folder in ordered or folder in begun:
            return
        begun.add(folder)
        for above in step.above(by_key):
            put(above)
        ordered[folder] = step

    begun = set[str]()
    for folder in sorted(steps, key=lambda one: steps[one].manifest is None):
        put(folder)
    return ordered


def folders_by_key(steps: Mapping[str, Step]) -> dict[str, str]:
    """Returns `step:KEY` -> folder. Records use `step:KEY` as the digest of a file that another step made."""
    return {f"step:{s.key}": folder for folder, s in steps.items() if s.key}


def _step(store: Store, folder: str, folders: Sequence[str]) -> Step:
    record = read_step(store, folder)
    written = read_step_file(store, folder) or {}
    schema = record.manifest.schema if record.manifest else written.get("schema")
    return Step(
        folder=folder,
        manifest=record.manifest,
        key=written.get("step_key", record.manifest.step_key if record.manifest else ""),
        columns=None if schema is None else frozenset(line.partition(":")[0] for line in schema),
        inputs=tuple(
            folder_now(name, folders)
            for name in written.get("inputs", record.manifest.inputs if record.manifest else ())
        ),
        files=written.get("files", record.manifest.files if record.manifest else {}),
        params=written.get("params", record.manifest.params if record.manifest else {}),
        references=tuple(
            {*written.get("references", ()), *(record.manifest.references if record.manifest else ())}
        ),
        artifact_references={
            **written.get("artifact_references", {}),
            **(record.manifest.artifact_references if record.manifest else {}),
        },
        shards=array("l", (r.index for r in record.receipts)),
        rejected=array("l", (r.index for r in record.receipts if r.rejects)),
    )
