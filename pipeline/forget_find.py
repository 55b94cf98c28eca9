"""What `vlpipe forget` would take out, folder by folder, and which models were made from it. Changes nothing."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import pyarrow as pa
import pyarrow.compute as pc

from vlpipe.pipeline.forget_json import names_rows
from vlpipe.pipeline.forget_list import KINDS, Wanted
from vlpipe.pipeline.forget_rows import Gone, ids_in, log_lines, looked_at, rejects_left
from vlpipe.pipeline.forget_taken import DONORS, find_taken
from vlpipe.pipeline.forgotten import canonical_url
from vlpipe.pipeline.manifest import Manifest
from vlpipe.pipeline.receipt import shard_path
from vlpipe.pipeline.records import read_step, step_folders
from vlpipe.pipeline.shard import open_parquet
from vlpipe.pipeline.store import Store

LISTING = re.compile(r"\.rows-[0-9a-f]{8}/")  # shards of the step that only lists what a source works on


@dataclass(kw_only=True)
class Touched:
    """What of a step's folder would change. `heirs`: rows that stay, without a text that they took. `files`: shards and
    Parquet artifacts; `parts`: its unfinished `work/`."""

    folder: str
    ids: set[str] = field(default_factory=set)
    heirs: set[str] = field(default_factory=set)
    files: list[str] = field(default_factory=list)
    rejects: list[int] = field(default_factory=list)
    num_rejects: int = 0
    logs: list[str] = field(default_factory=list)
    num_lines: int = 0
    parts: bool = False

    def __bool__(self) -> bool:
        return bool(self.files or self.rejects or self.logs or self.parts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """Artifacts that are no Parquet, of a step that read forgotten rows (`num_rows`), rows that took something from them
    (`num_heirs`), or such a model (`made_from`). `copies`: the rows as they are; they go, and the next run makes them again.
    """

    folder: str
    digest: str
    num_rows: int
    num_heirs: int
    made_from: tuple[str, ...] = ()
    copies: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A step's folder without its receipts, which of 100,000 shards are half a gigabyte. `rejected`: shards with rejects."""

    folder: str
    manifest: Manifest | None
    shards: Sequence[int]
    rejected: Sequence[int]

    @property
    def paths(self) -> Iterator[str]:
        return (shard_path(self.folder, index) for index in self.shards)

    def may_have(self, *columns: str) -> bool:
        """Whether its rows can have these: of 100,000 shards none is opened to see that they have not."""
        known = {one.partition(":")[0] for one in self.manifest.schema} if self.manifest else set(columns)
        return known >= set(columns)

    @property
    def artifacts(self) -> list[str]:
        """Those that are Parquet."""
        return self._artifacts(".parquet")

    @property
    def json_artifacts(self) -> list[str]:
        return self._artifacts(".json")

    def _artifacts(self, ending: str) -> list[str]:
        names = self.manifest.artifacts if self.manifest else ()
        return [f"{self.folder}/artifacts/{name}" for name in names if name.endswith(ending)]


@dataclass(kw_only=True)
class Found:
    gone: Gone
    num_rows: int
    unmatched: Counter[str]  # entries of the list that mean no row here, by kind
    folders: list[Touched]
    models: list[Model]
    unread: list[
        str
    ]  # folders with artifacts that only others read, and that were made from none of these rows
    steps: dict[str, Step]


def find(store: Store, wanted: Wanted, reads: Mapping[str, Sequence[str]]) -> Found:
    """Look through every folder of the root. `reads`: of steps that have not finished, the folders they read."""
    steps = in_order(store)
    ids, unmatched = _ids(store, steps, wanted)
    artifacts = (path for step in steps.values() for path in step.artifacts)
    taken = find_taken(store, chain(_shards(steps, "id", DONORS), artifacts), ids) if ids else {}
    gone = Gone(ids, wanted.url | _urls(store, steps, ids), wanted.domain, taken)
    folders = [_touched(store, step, gone) for step in steps.values()]
    touched = {one.folder: one for one in folders}
    for one in folders:
        if steps[one.folder].manifest is None and store.exists(f"{one.folder}/work"):
            above = reads.get(one.folder)  # unknown: better too much than too little
            one.parts = above is None or any(touched[f].files for f in above if f in touched)
    models = _models(steps, touched)
    seen = set().union(*(one.ids for one in folders))
    return Found(
        gone=gone,
        num_rows=len(seen),
        unmatched=unmatched,
        folders=[one for one in folders if one],
        models=models,
        unread=[f for f, s in steps.items() if _is_closed(s) and f not in {one.folder for one in models}],
        steps=steps,
    )


def in_order(store: Store) -> dict[str, Step]:
    """Step folders, each after what it reads; those that are not finished last."""
    steps = {folder: _step(store, folder) for folder in step_folders(store)}
    by_key = {f"step:{s.manifest.step_key}": folder for folder, s in steps.items() if s.manifest}
    ordered: dict[str, Step] = {}

    def put(folder: str) -> None:
        step = steps.get(folder)
        if step is not None and step.manifest is not None and folder not in ordered:
            for above in (*step.manifest.inputs, *makers(step.manifest, by_key)):
                put(above)
            ordered[folder] = step

    for folder in steps:
        put(folder)
    return ordered | {folder: step for folder, step in steps.items() if folder not in ordered}


def _step(store: Store, folder: str) -> Step:
    record = read_step(store, folder)
    return Step(
        folder=folder,
        manifest=record.manifest,
        shards=array("l", (r.index for r in record.receipts)),
        rejected=array("l", (r.index for r in record.receipts if r.rejects)),
    )


def makers(manifest: Manifest, by_key: Mapping[str, str]) -> Iterator[str]:
    """Folders whose artifacts a step read."""
    yield from (by_key[digest] for digest in manifest.files.values() if digest in by_key)


def _ids(store: Store, steps: Mapping[str, Step], wanted: Wanted) -> tuple[frozenset[str], Counter[str]]:
    """Ids of all rows meant, with what was made from them, and how many entries of each kind mean none."""
    ids, matched = set(wanted.id), set()
    listed = replace(wanted, opted_out=frozenset())
    for path in _shards(steps, "id"):
        # A row that is only listed and was then refused has no bytes here, and its reject says why.
        for id_, kind, value in ids_in(store, path, listed if LISTING.search(path) else wanted):
            ids.add(id_)
            if kind in KINDS:
                matched.add((kind, value))
    before = -1
    while before < len(ids):
        before = len(ids)
        known = Gone(frozenset(ids), frozenset(), frozenset())
        for path in _shards(steps, "id", "parent"):
            with open_parquet(store, path) as file:
                if {"id", "parent"} <= set(file.schema_arrow.names):
                    table = file.read(columns=["id", "parent"])
                    ids |= set(table.filter(known.names(table["parent"]))["id"].to_pylist())
    num_matched = Counter(kind for kind, _ in matched)
    return frozenset(ids), Counter({kind: len(getattr(wanted, kind)) - num_matched[kind] for kind in KINDS})


def _urls(store: Store, steps: Mapping[str, Step], ids: frozenset[str]) -> frozenset[str]:
    """URLs all of whose rows are forgotten: they are forgotten as well, under any other text.

    Read twice: which have such a row, then which of these have another one. So only these are held.
    """
    entering = {f: s for f, s in steps.items() if s.manifest is None or not s.manifest.inputs}
    known = Gone(ids, frozenset(), frozenset())
    gone = {url for table in _listed(store, entering) for url in _canonical(table, known.names(table["id"]))}
    for table in _listed(store, entering) if gone else ():
        gone.difference_update(_canonical(table, pc.invert(known.names(table["id"]))))
    return frozenset(gone)


def _listed(store: Store, steps: Mapping[str, Step]) -> Iterator[pa.Table]:
    for path in _shards(steps, "id", "url"):
        with open_parquet(store, path) as file:
            if {"id", "url"} <= set(file.schema_arrow.names):
                yield file.read(columns=["id", "url"])


def _canonical(table: pa.Table, mask: pa.ChunkedArray) -> Iterator[str]:
    yield from (canonical_url(url) for url in table.filter(mask)["url"].to_pylist() if url)


def _shards(steps: Mapping[str, Step], *columns: str) -> Iterator[str]:
    """Of all steps that can have these columns."""
    yield from chain.from_iterable(step.paths for step in steps.values() if step.may_have(*columns))


def _touched(store: Store, step: Step, gone: Gone) -> Touched:
    one = Touched(folder=step.folder)
    for path in step.paths:
        seen = looked_at(store, path, gone)
        if seen.changes:
            one.files.append(path)
        one.ids |= seen.ids
        one.heirs |= seen.heirs
    one.files += [path for path in step.artifacts if looked_at(store, path, gone).changes]
    one.files += [path for path in step.json_artifacts if names_rows(store, path, gone)]
    for index in step.rejected:
        _, num, changes = rejects_left(store, step.folder, index, gone)
        if changes:
            one.rejects.append(index)
            one.num_rejects += num
    for name in store.list(f"{step.folder}/_log"):
        if name.endswith((".jsonl", ".txt")):
            path = f"{step.folder}/_log/{name}"
            num = log_lines(store, path, gone)[1]
            if num:
                one.logs.append(path)
                one.num_lines += num
    return one


def _models(steps: Mapping[str, Step], touched: Mapping[str, Touched]) -> list[Model]:
    """In the order of the folders, so what a model was made from comes before it."""
    by_key = {f"step:{s.manifest.step_key}": f for f, s in steps.items() if s.manifest}
    found: dict[str, Model] = {}
    for folder, step in steps.items():
        manifest = step.manifest
        if manifest is None or not _has_files(step):
            continue
        above = [touched[f] for f in manifest.inputs if f in touched]
        rows, heirs = (len(set().union(*sets)) for sets in ([t.ids for t in above], [t.heirs for t in above]))
        before = tuple(f for f in dict.fromkeys(makers(manifest, by_key)) if f in found)
        if rows or heirs or before or (manifest.copies and any(t.files for t in above)):
            found[folder] = Model(
                folder=folder,
                digest=manifest.artifact_digest("") or "",
                num_rows=rows,
                num_heirs=heirs,
                made_from=before,
                copies=manifest.copies,
            )
    return list(found.values())


def _has_files(step: Step) -> bool:
    """Artifacts that cannot be taken apart into rows."""
    return step.manifest is not None and any(not n.endswith(".parquet") for n in step.manifest.artifacts)


def _is_closed(step: Step) -> bool:
    """Artifacts of which nothing says whose rows they have."""
    names = step.manifest.artifacts if step.manifest and not step.manifest.copies else ()
    return any(not name.endswith((".parquet", ".json")) for name in names)
