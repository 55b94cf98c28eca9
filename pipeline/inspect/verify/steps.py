"""The records of a root's steps, for one call of `verify`: each file is read once and shared by all checks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from pydantic import TypeAdapter

from vlpipe.pipeline.engine.records.manifest import Manifest, StepFile, read_manifest, read_step_file
from vlpipe.pipeline.engine.records.receipts import Receipt, read_receipts, read_unfinished
from vlpipe.pipeline.engine.records.source_hash import Sources
from vlpipe.pipeline.inspect.on_disk import folder_now, step_folders
from vlpipe.pipeline.inspect.verify.problems import BROKEN, Problem, read_or_problem
from vlpipe.pipeline.shard import Shard
from vlpipe.pipeline.storage.checksummed_json import read_sealed
from vlpipe.pipeline.storage.file_names import STEP_FILE
from vlpipe.pipeline.storage.store import Store

T = TypeVar("T")
RECEIPT, STEP = TypeAdapter(Receipt), TypeAdapter(StepFile)
MAX_KEPT = 10_000  # max number of receipts kept, a few KB each; those of the step read last are always kept


@dataclass(frozen=True, slots=True)
class _Kept:
    receipts: Sequence[Receipt] | Problem
    shards: Mapping[int, Shard] | None  # None if the receipts are damaged


@dataclass
class Steps:
    """Reads and caches records of a root's steps. A damaged record is a Problem or None: its own step reports it.

    sources: the hashes of stages' code as it is now.
    """

    store: Store
    sources: Sources = field(default_factory=Sources)
    _kept: dict[tuple[str, bool], _Kept] = field(default_factory=dict)
    _manifests: dict[str, Manifest] = field(default_factory=dict)
    _step_files: dict[str, StepFile | Problem] = field(default_factory=dict)

    @cached_property
    def folders(self) -> Sequence[str]:
        return step_folders(self.store)

    @cached_property
    def _finished(self) -> Sequence[str]:
        return [one for one in self.folders if self.store.exists(f"{one}/manifest.json")]

    @cached_property
    def _by_key(self) -> Mapping[str, list[str]]:
        """Full step key -> folders. A renamed step leaves one with its former name."""
        found: dict[str, list[str]] = {}
        for folder in self.folders:
            said = _or_none(lambda folder=folder: read_step_file(self.store, folder))  # type: ignore[misc]
            if said:
                found.setdefault(said["step_key"], []).append(folder)
        return found

    def folder_of(self, key: str, name: str) -> str | None:
        """Returns the folder of a full step key, or None; of several, a finished one, if possible that of step `name`."""
        found = self._by_key.get(key, [])
        return max(
            found, key=lambda one: (bool(self.manifest(one)), one.rpartition("-")[0] == name), default=None
        )

    def input_folder(self, name: str) -> str:
        """Returns the current folder of an input that a manifest names: that one, or a finished one of a renamed step."""
        return folder_now(folder_now(name, self._finished), self.folders)

    def manifest(self, folder: str) -> Manifest | None:
        if folder not in self._manifests:
            found = _or_none(lambda: read_manifest(self.store, folder))
            if found is None:
                return None
            self._manifests[folder] = found
        return self._manifests[folder]

    def step_file(self, folder: str) -> StepFile | Problem:
        """Returns the content of a folder's `_step.json`; a Problem if the file is missing or damaged."""
        if folder not in self._step_files:
            path = f"{folder}/{STEP_FILE}"
            self._step_files[folder] = read_or_problem(path, lambda: _step(self.store, path))
        return self._step_files[folder]

    def listed(self, folder: str) -> Sequence[Receipt] | Problem:
        """Returns the receipts in the `_shards.parquet` of a finished step; a Problem if it is missing or damaged."""
        return self._read(folder, is_finished=True).receipts

    def shards(self, folder: str) -> Mapping[int, Shard] | None:
        """Returns shard index -> shard, also of an unfinished step; None if the records are damaged."""
        return self._read(folder, self.store.exists(f"{folder}/manifest.json")).shards

    def _read(self, folder: str, is_finished: bool) -> _Kept:
        key = folder, is_finished
        if key not in self._kept:
            read = listed_receipts if is_finished else _unfinished_receipts
            found = read_or_problem(f"{folder}/_shards.parquet", lambda: read(self.store, folder))
            shards = None if isinstance(found, Problem) else {r.index: r.shard for r in found}
            self._kept[key] = _Kept(found, shards)
            while (
                len(self._kept) > 1 and sum(len(one.shards or ()) for one in self._kept.values()) > MAX_KEPT
            ):
                del self._kept[next(iter(self._kept))]
        return self._kept[key]


def listed_receipts(store: Store, folder: str) -> list[Receipt]:
    """Returns the receipts in `_shards.parquet`. Raises VlpipeError if it is damaged, ValidationError for a wrong type."""
    receipts = read_receipts(store, folder)
    for receipt in receipts:
        RECEIPT.validate_json(json.dumps(receipt.to_json()), strict=True)
    return receipts


def _unfinished_receipts(store: Store, folder: str) -> list[Receipt]:
    return [*read_unfinished(store, folder).values()]


def _step(store: Store, path: str) -> StepFile:
    return STEP.validate_json(json.dumps(read_sealed(store, path)), strict=True)


def _or_none(read: Callable[[], T]) -> T | None:
    try:
        return read()
    except BROKEN:
        return None
