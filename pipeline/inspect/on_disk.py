"""Finds steps, shards and valid receipts in a root, of finished and unfinished steps, for the commands that read them."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from vlpipe.pipeline.engine.plan import read_record
from vlpipe.pipeline.engine.planned import PlannedStep, artifacts_digest, is_gather
from vlpipe.pipeline.engine.records.manifest import Manifest, read_manifest
from vlpipe.pipeline.engine.records.receipts import (
    STEP_FOLDER,
    MadeFrom,
    Receipt,
    made_from,
    read_receipts,
    read_unfinished,
    shard_path,
)
from vlpipe.pipeline.engine.records.rejects import rejects_path
from vlpipe.pipeline.engine.records.root_format import check_format
from vlpipe.pipeline.engine.records.step_keys import shard_key
from vlpipe.pipeline.errors import VlpipeError, did_you_mean
from vlpipe.pipeline.shard import Shard
from vlpipe.pipeline.stage import MapStage
from vlpipe.pipeline.storage.file_names import SHARD_FILE, is_engines
from vlpipe.pipeline.storage.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class StepFolder:
    """A resolved path: a root (`folder` is empty), a step's folder, one of its shards (`index`), its rejects, or any other
    Parquet file (`file`)."""

    store: Store
    folder: str = ""
    index: int | None = None
    rejects: bool = False
    file: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRecord:
    """Records in a step's folder. manifest: None if the step is not finished."""

    folder: str
    manifest: Manifest | None
    receipts: list[Receipt]

    @property
    def num_rows(self) -> int:
        return sum(r.shard.num_rows for r in self.receipts)


def find_place(path: str) -> StepFolder:
    """Returns what a user's path points to; `ROOT/STEP` stands for the folder of that step in the last run.

    Raises VlpipeError if it does not exist or is not one of StepFolder's kinds.
    """
    url = (path if "://" in path else os.path.abspath(os.path.expanduser(path))).rstrip("/")
    above, _, name = url.rpartition("/")
    if not Store(url).exists(""):
        if last := _of_last_run(url):
            return find_place(last)
        names = [n for n in Store(above).list() if n[0] not in "_."] if above else []
        near = did_you_mean(name, names[:50])
        raise VlpipeError(f"there is no file or folder {path}{near}")
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
        f"{path} is neither an output root, nor a step's folder (STEP-0123abcd), nor a shard, nor a Parquet file"
    )


def _of_last_run(url: str) -> str:
    """Returns `ROOT/STEP/...` with the folder that the last run used for the step; empty if there is none."""
    root, rest = url, ""
    for _ in range(3):  # STEP, STEP/_rejects, STEP/_rejects/000000.parquet
        root, _, name = root.rpartition("/")
        if not root:
            break
        folder = read_record(Store(root)).get(name, {}).get("folder")
        if isinstance(folder, str) and folder and Store(root).exists(folder):
            return f"{root}/{folder}{rest}"
        rest = f"/{name}{rest}"
    return ""


def is_step_folder(store: Store, name: str) -> bool:
    """True if the folder has a step's name and contains at least one entry that the engine writes."""
    return bool(STEP_FOLDER.fullmatch(name)) and any(is_engines(entry) for entry in store.list(name))


def foreign(store: Store, folder: str) -> list[str]:
    """Returns the entries of a step's folder that the engine did not write."""
    return [entry for entry in store.list(folder) if not is_engines(entry)]


def step_folders(store: Store) -> list[str]:
    """Returns the names of all step folders of a root."""
    return [name for name in store.list() if is_step_folder(store, name)]


def folder_now(folder: str, folders: Collection[str]) -> str:
    """Returns the current folder of a step that a record names as `folder`: that one or, if it is not in `folders`, one with
    the same key in its name; `folder` if there is none.

    A renamed step moves to a new folder (`web-1f3c9a02` to `clean-1f3c9a02`), and the old one may be pruned.
    """
    if folder in folders:
        return folder
    digits = folder.rpartition("-")[2]
    return next((other for other in folders if other.rpartition("-")[2] == digits), folder)


def need_step(place: StepFolder, path: str) -> str:
    """Returns the folder's name if the resolved path is a whole step, else raises VlpipeError. path: for the error text."""
    if place.folder and place.index is None and not place.rejects:
        return place.folder
    have = ", ".join(step_folders(place.store)) if not place.folder and not place.file else ""
    raise VlpipeError(f"{path} is not a step's folder" + (f"; this root has {have}" if have else ""))


def read_step(store: Store, folder: str) -> StepRecord:
    """Returns manifest and receipts; of an unfinished step the receipts so far. Raises VlpipeError for a damaged record."""
    manifest = read_manifest(store, folder)
    if manifest is not None:
        return StepRecord(folder=folder, manifest=manifest, receipts=read_receipts(store, folder))
    found = read_unfinished(store, folder)
    return StepRecord(folder=folder, manifest=None, receipts=[found[index] for index in sorted(found)])


def data_path(place: StepFolder) -> str:
    """Returns the path of the shard, or of its rejects, that `place` stands for. `place.index` must not be None."""
    assert place.index is not None
    return (rejects_path if place.rejects else shard_path)(place.folder, place.index)


@dataclass(frozen=True, slots=True)
class StepReceipts:
    """Valid receipts of a step. num_shards: how many shards the step has once it is done; None if that is not known yet."""

    found: dict[int, Receipt]
    num_shards: int | None
    done: PlannedStep | None = None  # a finished step, whose receipts are read lazily

    @property
    def receipts(self) -> dict[int, Receipt]:
        """Shard index -> receipt."""
        return {r.index: r for r in self.done.receipts} if self.done else self.found


def what_is_there(steps: Sequence[PlannedStep], store: Store) -> dict[str, StepReceipts]:
    """Returns step name -> receipts that match the step's current inputs, also for unfinished steps (gather steps: none)."""
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
    stage = one.keyed.step.stage
    heavy = stage.READS_HEAVY if isinstance(stage, MapStage) else ()

    def would_be(source: Shard) -> MadeFrom:
        return made_from(shard_key(one.keyed.stage_key, source.key), source, heavy, made_with)

    found = {
        index: receipt
        for index, receipt in sorted(receipts.items())
        if index in inputs and receipt.made_from == would_be(inputs[index])
    }
    return StepReceipts(found, num_shards)


def input_shards(one: PlannedStep, have: dict[str, StepReceipts]) -> dict[int, Shard]:
    """Returns index -> finished input shard of a map step; with several inputs, indices continue from one to the next.

    Inputs below one whose number of shards is not known yet are left out.
    """
    found: dict[int, Shard] = {}
    for above in one.above:
        start = offset(one, above, have)
        if start is None:
            break
        found.update({start + k: r.shard for k, r in have[above.name].receipts.items()})
    return found


def offset(one: PlannedStep, above: PlannedStep, have: dict[str, StepReceipts]) -> int | None:
    """Returns the index of the first shard of `one` that comes from `above`; None if it is not known yet."""
    totals = [have[p.name].num_shards for p in one.above[: one.above.index(above)]]
    return None if None in totals else sum(n or 0 for n in totals)
