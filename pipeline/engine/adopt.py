"""Adopts finished shards: links the files of another step's folder into the step's own, instead of computing them again.

Shards are found by what they were made from; names of steps are not compared. So nothing is computed twice for a longer
list, a renamed step, a step moved into `repeat`, or a list that grows after an interrupted fetch. Of several shards made
from the same inputs, the one with the fewest faults is adopted: `vlpipe retry` may have repaired rows in it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

from vlpipe.pipeline.engine.records.manifest import Manifest, read_manifest, read_step_file
from vlpipe.pipeline.engine.records.receipts import (
    STEP_FOLDER,
    MadeFrom,
    Receipt,
    log_path,
    own_digest,
    read_receipts,
    read_unfinished,
    shard_path,
    write_receipt,
)
from vlpipe.pipeline.engine.records.rejects import RejectsWriter, read_rejects, rejects_path
from vlpipe.pipeline.engine.records.step_keys import StepKeys
from vlpipe.pipeline.engine.worker.gather import clear_unfinished
from vlpipe.pipeline.shard import Heavy, Reject
from vlpipe.pipeline.storage.store import Store


@dataclass(frozen=True, slots=True)
class Candidate:
    """A finished shard that may be adopted: its receipt and the folder it is in."""

    folder: str
    receipt: Receipt


@dataclass
class FinishedShards:
    """Index of a root's finished shards by what they were made from: the `Reuse` of a run.

    Each folder is read once, at the first lookup of its stage key (see `records/keys.py`).

    strict: shards made by a different version of the code are not adopted.
    """

    store: Store
    strict: bool = False
    _folders: dict[str, list[str]] | None = None  # stage key -> folders
    _by_folder: dict[str, dict[MadeFrom, list[Candidate]]] = field(default_factory=dict)
    _sizes: dict[str, dict[str, int]] = field(default_factory=dict)

    def folders(self, stage_key: str) -> list[str]:
        """Returns the names of the root's step folders with this stage key."""
        if self._folders is None:
            self._folders = {}
            for folder in self.store.list():
                step_file = read_step_file(self.store, folder) if STEP_FOLDER.fullmatch(folder) else None
                if step_file is not None:
                    self._folders.setdefault(step_file["stage_key"], []).append(folder)
        return self._folders.get(stage_key, [])

    def adopt(
        self, keyed: StepKeys, made_from: MadeFrom, index: int, heavy: tuple[Heavy, ...]
    ) -> Receipt | None:
        found = self.find(keyed.stage_key, made_from, keyed.source, keyed.folder)
        return adopt(self.store, found, keyed.folder, index, heavy) if found else None

    def adopt_step(self, keyed: StepKeys, inputs_digest: str) -> tuple[Manifest, list[Receipt]] | None:
        found = self.find_step(keyed.stage_key, inputs_digest, keyed.source, keyed.folder)
        if found is None:
            return None
        folder, manifest = found
        clear_unfinished(self.store, keyed.folder)
        return manifest, adopt_step(self.store, folder, manifest, keyed.folder)

    def note(self, stage_key: str, folder: str) -> None:
        """Adds a folder whose step this run has finished."""
        folders = self.folders(stage_key)
        if folder not in folders:
            folders.append(folder)
            assert self._folders is not None
            self._folders[stage_key] = folders

    def find(self, stage_key: str, made_from: MadeFrom, source: str, own: str) -> Candidate | None:
        """Returns a complete shard made from exactly these inputs, in a folder other than `own`; None if there is none.

        source: hash of the step's current code.
        """
        found = [c for f in self.folders(stage_key) if f != own for c in self._of(f).get(made_from, ())]
        if self.strict:
            found = [c for c in found if c.receipt.source == source]
        found.sort(key=lambda c: (c.receipt.num_faults, c.receipt.source != source, c.folder))
        return next((c for c in found if self.is_whole(c.receipt)), None)

    def find_step(
        self, stage_key: str, inputs_digest: str, source: str, own: str
    ) -> tuple[str, Manifest] | None:
        """Returns (folder, manifest) of a complete gather step made from exactly these inputs, in a folder other than `own`.

        None if there is none. source: hash of the step's current code.
        """
        for folder in self.folders(stage_key):
            manifest = read_manifest(self.store, folder) if folder != own else None
            if manifest is None or manifest.inputs_digest != inputs_digest:
                continue
            if not (self.strict and set(manifest.sources) - {source}) and self._is_whole_step(
                folder, manifest
            ):
                return folder, manifest
        return None

    def _is_whole_step(self, folder: str, manifest: Manifest) -> bool:
        artifacts = (f"{folder}/artifacts/{name}" for name in manifest.artifacts)
        return all(map(self.is_whole, read_receipts(self.store, folder))) and all(
            map(self.store.exists, artifacts)
        )

    def is_whole(self, receipt: Receipt) -> bool:
        """Returns True if the shard's file has the size in its receipt (`vlpipe verify` checks the content)."""
        folder, _, name = receipt.shard.path.rpartition("/")
        if folder not in self._sizes:
            self._sizes[folder] = self.store.sizes(folder)
        return self._sizes[folder].get(name) == receipt.bytes

    def _of(self, folder: str) -> dict[MadeFrom, list[Candidate]]:
        if folder not in self._by_folder:
            found: dict[MadeFrom, list[Candidate]] = {}
            for receipt in self._receipts(folder):
                found.setdefault(receipt.made_from, []).append(Candidate(folder, receipt))
            self._by_folder[folder] = found
        return self._by_folder[folder]

    def _receipts(self, folder: str) -> Sequence[Receipt]:
        if read_manifest(self.store, folder) is not None:
            return read_receipts(self.store, folder)
        return list(read_unfinished(self.store, folder).values())


def adopt(store: Store, found: Candidate, folder: str, index: int, heavy: tuple[Heavy, ...]) -> Receipt:
    """Adopts a shard into another folder: links its files, writes a new receipt and returns it.

    heavy: where its heavy columns are stored now; digests of those stored in the shard itself are filled in.
    """
    old, path = found.receipt, shard_path(folder, index)
    store.link_or_copy(old.shard.path, path)
    rejects_digest = _adopt_rejects(store, found, folder, index)
    log = log_path(found.folder, old.index)
    if store.exists(log):
        store.link_or_copy(log, log_path(folder, index))
    shard = dataclasses.replace(old.shard, path=path)
    shard = dataclasses.replace(shard, heavy=own_digest(heavy, shard))
    receipt = dataclasses.replace(old, index=index, shard=shard, rejects_digest=rejects_digest)
    write_receipt(store, folder, receipt)
    return receipt


def _adopt_rejects(store: Store, found: Candidate, folder: str, index: int) -> str:
    """Adopts a shard's rejects, with the adopting step's name in column `stage`; returns the digest of the file."""
    old, step = found.receipt, folder.rpartition("-")[0]
    if not old.rejects:
        store.remove(rejects_path(folder, index))  # left by a killed run
        return ""
    if found.folder.rpartition("-")[0] == step:
        store.link_or_copy(rejects_path(found.folder, old.index), rejects_path(folder, index))
        return old.rejects_digest
    with RejectsWriter(store, folder, index, step) as writer:
        for row in read_rejects(store, found.folder, old.index).drop_columns(["stage"]).to_pylist():
            writer.add(Reject(**row))
        writer.finish()
    return writer.digest


def adopt_step(store: Store, old: str, manifest: Manifest, folder: str) -> list[Receipt]:
    """Adopts a finished gather step: shards, rejects and artifacts. Returns the new receipts."""
    receipts: list[Receipt] = []
    for receipt in read_receipts(store, old):
        path = shard_path(folder, receipt.index)
        heavy = tuple(
            one._replace(path=path) if one.path == receipt.shard.path else one for one in receipt.shard.heavy
        )
        receipts.append(adopt(store, Candidate(old, receipt), folder, receipt.index, heavy))
    for name in manifest.artifacts:
        store.link_or_copy(f"{old}/artifacts/{name}", f"{folder}/artifacts/{name}")
    return receipts
