"""`prune`: finds and removes step folders that none of the given workflows uses."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from vlpipe.pipeline.engine.plan import plan, why
from vlpipe.pipeline.engine.planned import PlannedStep
from vlpipe.pipeline.engine.records.manifest import read_step_file
from vlpipe.pipeline.errors import VlpipeError, did_you_mean, explain
from vlpipe.pipeline.inspect.on_disk import foreign, is_step_folder, read_step, step_folders
from vlpipe.pipeline.inspect.status import folder_bytes
from vlpipe.pipeline.storage.store import Store
from vlpipe.pipeline.workflow.load import Workflow, profiles_of


@dataclass(frozen=True, kw_only=True, slots=True)
class UnreachedFolder:
    """A step folder that no given workflow uses.

    what: how its step differs from the step of that name in a workflow; kept_for: why `prune` keeps the folder, such as
    `it is a symbolic link`; "" if it removes it.
    """

    folder: str
    bytes: int
    what: str = ""
    kept_for: str = ""


def reaching(
    path: str,
    store: Store,
    root: str | None = None,
    sets: Sequence[str] = (),
    *,
    only_set: bool = False,
    dropped: Collection[str] = (),
) -> list[list[PlannedStep]]:
    """Returns all plans of a workflow: without a profile and with each of its profiles, each of them without `--set` and
    with the values in `sets`.

    root: as `--root`; only_set: leave out the plans without `sets`; dropped: profiles to leave out. Raises VlpipeError if a
    plan cannot be made, because the folders it uses are then unknown.
    """
    values = [tuple(sets)] if only_set or not sets else [(), tuple(sets)]
    profiles = [None, *(name for name in profiles_of(path) if name not in dropped)]
    return [_reached(path, store, root, profile, some) for profile in profiles for some in values]


def _reached(
    path: str, store: Store, root: str | None, profile: str | None, sets: Sequence[str]
) -> list[PlannedStep]:
    what = path if profile is None else f"profile {profile!r} of {path}"
    what += "".join(f" --set {one}" for one in sets)
    give_up = f"; --drop-profile {profile} prunes its folders" if profile is not None else ""
    if profile is None and not sets:
        give_up = "; --set STEP.KEY=VALUE --only-set prunes the folders it uses without those values"
    try:
        found = Workflow.load(path, profile=profile, sets=sets, root=root or store.url)
    except (VlpipeError, OSError) as error:
        reason = explain(error).splitlines()[-1].strip()
        raise VlpipeError(
            f"{what} cannot be loaded here ({reason}), so the folders it uses are unknown: nothing was removed{give_up}"
        ) from error
    try:
        return plan(found, store)
    except (VlpipeError, OSError) as error:  # a damaged record, say, which should be repaired and not pruned
        raise VlpipeError(f"{what}: nothing was removed, because {explain(error)}") from error


def check_dropped(paths: Iterable[str], dropped: Iterable[str]) -> None:
    """Raises VlpipeError if a name in `dropped` is not a profile of one of the workflow files."""
    known = {name for path in paths for name in profiles_of(path)}
    for name in dropped:
        if name not in known:
            raise VlpipeError(f"--drop-profile: there is no profile {name!r}{did_you_mean(name, known)}")


def unreached(store: Store, plans: Sequence[Sequence[PlannedStep]]) -> list[UnreachedFolder]:
    """Returns the step folders of the root that are in none of the plans."""
    reached = {one.folder for steps in plans for one in steps}
    holders = _holders(store, reached)
    renamed = {one.keyed.step_key: one.name for steps in plans for one in steps if not one.is_done}
    by_name = {one.name: one for steps in reversed(plans) for one in steps}
    found = []
    for folder in step_folders(store):
        if folder not in reached:
            found.append(
                UnreachedFolder(
                    folder=folder,
                    bytes=folder_bytes(store, folder),
                    what=_what(store, folder, by_name),
                    kept_for=_kept_for(store, folder, holders, renamed),
                )
            )
    return found


def _what(store: Store, folder: str, by_name: Mapping[str, PlannedStep]) -> str:
    """Returns how the step of a folder differs from the step that now has its name; empty if the folder has no record."""
    made = read_step_file(store, folder)
    if made is None:
        return ""
    if made["step"] not in by_name:
        return "no given workflow has a step of this name"
    found = why(by_name[made["step"]], made)
    return "an upstream step changed" if found.startswith("step ") else found


def _kept_for(store: Store, folder: str, holders: Mapping[str, str], renamed: Mapping[str, str]) -> str:
    """renamed: step key -> name of steps that are not done, which adopt what a folder of the same key has."""
    made = read_step_file(store, folder)
    if made is not None and made["step_key"] in renamed:
        return f"the next run of step {renamed[made['step_key']]!r} adopts what is in it"
    if store.is_local and os.path.islink(store.path(folder)):
        return "it is a symbolic link"
    if folder in holders:
        return f"{holders[folder]} reads heavy columns in it"
    others = foreign(store, folder)
    return f"it holds {others[0]}, which vlpipe did not write" if others else ""


def _holders(store: Store, reached: set[str]) -> dict[str, str]:
    """Returns folder that stores heavy columns -> folder of a used step that reads them from there."""
    holders: dict[str, str] = {}
    for folder in sorted(reached):
        for receipt in read_step(store, folder).receipts if is_step_folder(store, folder) else ():
            for _, path, *_ in receipt.shard.heavy:
                holders.setdefault(path.partition("/")[0], folder)
    return holders


def remove(store: Store, found: Iterable[UnreachedFolder]) -> int:
    """Removes the folders without `kept_for` and returns their size in bytes. The caller holds the root's lock.

    The manifest is removed first, so that a half-removed step does not look done. Raises VlpipeError for a folder
    that is not a step's.
    """
    freed = 0
    for one in found:
        if one.kept_for:
            continue
        if not is_step_folder(store, one.folder):
            raise VlpipeError(f"{store.path(one.folder)} is not a step's folder; nothing in it was removed")
        store.remove(f"{one.folder}/manifest.json")
        store.remove(one.folder)
        freed += one.bytes
    return freed
