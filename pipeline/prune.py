"""`prune`: step folders that no given workflow reaches any more."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import yaml

from vlpipe.pipeline.errors import VlpipeError, WorkflowError
from vlpipe.pipeline.plan import Planned, plan
from vlpipe.pipeline.records import foreign, is_step_folder, read_step, step_folders
from vlpipe.pipeline.status import folder_bytes
from vlpipe.pipeline.store import Store
from vlpipe.pipeline.workflow import Workflow


@dataclass(frozen=True, kw_only=True, slots=True)
class Unreached:
    """A folder no workflow reaches. `kept_for`: why it stays nevertheless; empty: it can go."""

    folder: str
    bytes: int
    kept_for: str = ""


def reaching(
    path: str, store: Store, sets: Sequence[str], root: str | None, say: Callable[[str], None]
) -> list[list[Planned]]:
    """What a file reaches: as it is, and under each of its profiles. `say` names profiles that cannot be loaded here."""
    with open(path, encoding="utf-8") as file:
        profiles = (yaml.safe_load(file) or {}).get("profiles") or {}
    plans = [plan(Workflow.load(path, sets=sets, root=root), store)]
    for profile in profiles:
        try:
            plans.append(plan(Workflow.load(path, profile=profile, sets=sets, root=root), store))
        except WorkflowError as error:
            reason = str(error).splitlines()[-1].strip()
            say(f"profile {profile!r} of {path} cannot be loaded here and keeps nothing ({reason})")
    return plans


def unreached(store: Store, plans: Iterable[Sequence[Planned]]) -> list[Unreached]:
    """Folders of the root that are in no plan, with their sizes."""
    reached = {one.folder for steps in plans for one in steps}
    holders = _holders(store, reached)
    found = []
    for folder in step_folders(store):
        if folder in reached:
            continue
        others = foreign(store, folder)
        why = f"{holders[folder]} reads heavy columns in it" if folder in holders else ""
        why = why or (f"it holds {others[0]}, which vlpipe did not write" if others else "")
        found.append(Unreached(folder=folder, bytes=folder_bytes(store, folder), kept_for=why))
    return found


def _holders(store: Store, reached: set[str]) -> dict[str, str]:
    """Folder -> a reached step whose shards point into it."""
    holders: dict[str, str] = {}
    for folder in sorted(reached):
        for receipt in read_step(store, folder).receipts if is_step_folder(store, folder) else ():
            for _, path, _ in receipt.shard.heavy:
                holders.setdefault(path.partition("/")[0], folder)
    return holders


def remove(store: Store, found: Iterable[Unreached]) -> int:
    """Remove what can go; returns bytes. Needs the root's lock. The manifest goes first: half a step must not look done."""
    freed = 0
    for one in found:
        if one.kept_for:
            continue
        if not is_step_folder(store, one.folder):
            raise VlpipeError(f"{store.path(one.folder)} is no step's folder; nothing in it was touched")
        store.remove(f"{one.folder}/manifest.json")
        store.remove(one.folder)
        freed += one.bytes
    return freed
