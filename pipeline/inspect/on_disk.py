"""What lies on disk, for the commands that look at it: steps, shards, receipts of finished and unfinished steps."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from vlpipe.pipeline.engine.plan import PlannedStep, artifacts_digest, is_gather
from vlpipe.pipeline.engine.records.keys import shard_key
from vlpipe.pipeline.engine.records.manifest import Manifest, check_format, read_manifest
from vlpipe.pipeline.engine.records.receipts import (
    STEP_FOLDER,
    MadeFrom,
    Receipt,
    read_receipts,
    read_unfinished,
    rejects_path,
    shard_path,
)
from vlpipe.pipeline.errors import VlpipeError, did_you_mean
from vlpipe.pipeline.shard import Shard
from vlpipe.pipeline.storage.file_names import SHARD_FILE, is_engines
from vlpipe.pipeline.storage.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class StepFolder:
    """A root (`folder` is empty), a step's folder, a shard of it, its rejects, or (`file`) a Parquet file as it is."""

    store: Store
    folder: str = ""
    index: int | None = None
    rejects: bool = False
    file: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRecord:
    """A step's folder as it lies there; no manifest: it is not finished."""

    folder: str
    manifest: Manifest | None
    receipts: list[Receipt]

    @property
    def num_rows(self) -> int:
        return sum(r.shard.num_rows for r in self.receipts)


def find_place(path: str) -> StepFolder:
    """What a path given by a person means. VlpipeError says what there is instead."""
    url = (path if "://" in path else os.path.abspath(os.path.expanduser(path))).rstrip("/")
    above, _, name = url.rpartition("/")
    if not Store(url).exists(""):
        there = [n for n in Store(above).list() if n[0] not in "_."] if above else []
        near = did_you_mean(name, there[:50])
        raise VlpipeError(f"there is no {path}{near}")
    shard = SHARD_FILE.fullmatch(name)
    index = int(shard[1]) if shard else None
    folder = above if shard else url
    rejects = folder.endswith("/_rejects")
    root, _, step = (folder.rpartition("/")[0] if rejects else folder).rpartition("/")
    if is_step_folder(Store(root), step):
        check_format(Store(root), old=True)
        return StepFolder(store=Store(root), folder=step, index=index, rejects=rejects)
    if name.endswith(".parquet"):
        return StepFolder(store=Store(above), file=name)
    if step_folders(Store(url)):
        check_format(Store(url), old=True)
        return StepFolder(store=Store(url))
    raise VlpipeError(
        f"{path} is neither a root, nor a step's folder (STEP-0123abcd), nor a shard, nor a Parquet file"
    )


def is_step_folder(store: Store, name: str) -> bool:
    """By its name, and by at least one thing in it that the engine writes."""
    return bool(STEP_FOLDER.fullmatch(name)) and any(is_engines(entry) for entry in store.list(name))


def foreign(store: Store, folder: str) -> list[str]:
    """What lies in a step's folder that the engine does not write."""
    return [entry for entry in store.list(folder) if not is_engines(entry)]


def step_folders(store: Store) -> list[str]:
    return [name for name in store.list() if is_step_folder(store, name)]


def folder_now(folder: str, folders: Collection[str]) -> str:
    """Where a step that a record names lies now.

    A renamed step takes its shards over into a folder of its own, with the same key in its name; the old one may be pruned.
    """
    if folder in folders:
        return folder
    digits = folder.rpartition("-")[2]
    return next((other for other in folders if other.rpartition("-")[2] == digits), folder)


def need_step(place: StepFolder, path: str) -> str:
    """The folder of a place that must be a whole step."""
    if place.folder and place.index is None and not place.rejects:
        return place.folder
    have = ", ".join(step_folders(place.store)) if not place.folder and not place.file else ""
    raise VlpipeError(
        f"{path}: wanted a step's folder" + (f"; in this root there are: {have}" if have else "")
    )


def read_step(store: Store, folder: str) -> StepRecord:
    """Manifest and receipts; of an unfinished step what is there so far. VlpipeError: a record cannot be read."""
    manifest = read_manifest(store, folder)
    if manifest is not None:
        return StepRecord(folder=folder, manifest=manifest, receipts=read_receipts(store, folder))
    found = read_unfinished(store, folder)
    return StepRecord(folder=folder, manifest=None, receipts=[found[index] for index in sorted(found)])


def data_path(place: StepFolder) -> str:
    """The file a place with an index means."""
    assert place.index is not None
    return (rejects_path if place.rejects else shard_path)(place.folder, place.index)


def find_step(steps: Sequence[PlannedStep], name: str) -> PlannedStep:
    """The planned step of that name; a bare name of a repeated step means its last round."""
    for one in reversed(steps):
        if name in (one.name, one.name.partition("@")[0]):
            return one
    raise VlpipeError(f"there is no step {name!r}{did_you_mean(name, [one.name for one in steps])}")


@dataclass(frozen=True, slots=True)
class StepReceipts:
    """What of a step is there and counts now. `num_shards`: how many there will be; None: not known before it ran."""

    found: dict[int, Receipt]
    num_shards: int | None
    done: PlannedStep | None = None  # a finished step: its receipts are read when they are asked for

    @property
    def receipts(self) -> dict[int, Receipt]:
        return {r.index: r for r in self.done.receipts} if self.done else self.found


def what_is_there(steps: Sequence[PlannedStep], store: Store) -> dict[str, StepReceipts]:
    """Per step the receipts that match what is above them; also of steps that are half done."""
    have: dict[str, StepReceipts] = {}
    for one in steps:
        if one.manifest is not None:
            have[one.name] = StepReceipts({}, one.manifest.num_shards, done=one)
        elif is_gather(one):
            have[one.name] = StepReceipts({}, None)
        else:
            have[one.name] = _half_done(one, store, have)
    return have


def _half_done(one: PlannedStep, store: Store, have: dict[str, StepReceipts]) -> StepReceipts:
    inputs = input_shards(one, have)
    totals = [have[p.name].num_shards for p in one.above]
    num_shards = None if None in totals else sum(n or 0 for n in totals)
    if not all(p.is_done for p in one.artifact_steps):
        return StepReceipts({}, num_shards)
    made_with, receipts = artifacts_digest(one), one.found or read_unfinished(store, one.folder)
    found = {
        index: receipt
        for index, receipt in sorted(receipts.items())
        if index in inputs and receipt.made_from == _made_from(one, inputs[index], made_with)
    }
    return StepReceipts(found, num_shards)


def _made_from(one: PlannedStep, shard: Shard, made_with: str) -> MadeFrom:
    heavy = shard.heavy_digests(getattr(one.keyed.step.stage, "READS_HEAVY", ()))
    return shard_key(one.keyed.stage_key, shard.key), shard.digest, tuple(sorted(heavy.items())), made_with


def input_shards(one: PlannedStep, have: dict[str, StepReceipts]) -> dict[int, Shard]:
    """Input shards of a map step by number; over several inputs the numbers count on."""
    found: dict[int, Shard] = {}
    for above in one.above:
        start = offset(one, above, have)
        if start is None:
            break
        found.update({start + k: r.shard for k, r in have[above.name].receipts.items()})
    return found


def offset(one: PlannedStep, above: PlannedStep, have: dict[str, StepReceipts]) -> int | None:
    """Number of the first shard of `one` that comes from `above`; None while that is not known."""
    totals = [have[p.name].num_shards for p in one.above[: one.above.index(above)]]
    return None if None in totals else sum(n or 0 for n in totals)
