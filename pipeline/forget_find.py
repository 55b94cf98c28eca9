"""What `vlpipe forget` would take out, folder by folder, and which models were made from it. Changes nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.compute as pc

from vlpipe.pipeline.forget_list import KINDS, Wanted
from vlpipe.pipeline.forget_rows import Gone, ids_in, log_lines, looked_at, rejects_left
from vlpipe.pipeline.forgotten import canonical_url
from vlpipe.pipeline.receipt import Manifest
from vlpipe.pipeline.records import StepRecord, read_step, step_folders
from vlpipe.pipeline.shard import open_parquet
from vlpipe.pipeline.store import Store

LISTING = re.compile(r"\.rows-[0-9a-f]{8}/")  # shards of the step that only lists what a source works on


@dataclass(kw_only=True)
class Touched:
    """What of a step's folder would change. `files`: shards and Parquet artifacts; `parts`: its unfinished `work/`."""

    folder: str
    ids: set[str] = field(default_factory=set)
    files: list[str] = field(default_factory=list)
    num_rows: int = 0
    rejects: list[int] = field(default_factory=list)
    num_rejects: int = 0
    logs: list[str] = field(default_factory=list)
    num_lines: int = 0
    parts: bool = False

    def __bool__(self) -> bool:
        return bool(self.files or self.rejects or self.logs or self.parts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """Artifacts that are no Parquet, of a step that read forgotten rows (`num_rows`), or such a model (`made_from`)."""

    folder: str
    digest: str
    num_rows: int
    made_from: tuple[str, ...] = ()


@dataclass(kw_only=True)
class Found:
    gone: Gone
    num_rows: int
    unmatched: int  # entries of the list that mean no row here
    folders: list[Touched]
    models: list[Model]
    unread: list[str]  # folders with artifacts that are no Parquet and were made from none of these rows
    records: dict[str, StepRecord]


def find(store: Store, wanted: Wanted, reads: Mapping[str, Sequence[str]]) -> Found:
    """Look through every folder of the root. `reads`: of steps that have not finished, the folders they read."""
    records = {folder: read_step(store, folder) for folder in in_order(store)}
    ids, unmatched = _ids(store, records, wanted)
    gone = Gone(ids, wanted.url | _urls(store, records, ids), wanted.domain)
    folders = [_touched(store, record, gone) for record in records.values()]
    touched = {one.folder: one for one in folders}
    for one in folders:
        if records[one.folder].manifest is None and store.exists(f"{one.folder}/work"):
            above = reads.get(one.folder)  # unknown: better too much than too little
            one.parts = above is None or any(touched[f].files for f in above if f in touched)
    models = _models(records, touched)
    seen = set().union(*(one.ids for one in folders))
    return Found(
        gone=gone,
        num_rows=len(seen),
        unmatched=unmatched,
        folders=[one for one in folders if one],
        models=models,
        unread=[f for f, r in records.items() if _has_files(r) and f not in {one.folder for one in models}],
        records=records,
    )


def in_order(store: Store) -> list[str]:
    """Step folders, each after what it reads; those that are not finished last."""
    manifests = {folder: read_step(store, folder).manifest for folder in step_folders(store)}
    by_key = {f"step:{m.step_key}": folder for folder, m in manifests.items() if m}
    ordered: dict[str, None] = {}

    def put(folder: str) -> None:
        manifest = manifests.get(folder)
        if manifest is not None and folder not in ordered:
            for above in (*manifest.inputs, *makers(manifest, by_key)):
                put(above)
            ordered[folder] = None

    for folder in manifests:
        put(folder)
    return [*ordered, *(folder for folder in manifests if folder not in ordered)]


def makers(manifest: Manifest, by_key: Mapping[str, str]) -> Iterator[str]:
    """Folders whose artifacts a step read."""
    yield from (by_key[digest] for digest in manifest.files.values() if digest in by_key)


def _ids(store: Store, records: Mapping[str, StepRecord], wanted: Wanted) -> tuple[frozenset[str], int]:
    """Ids of all rows meant, with what was made from them, and how many entries mean none."""
    ids, matched = set(wanted.id), set()
    listed = replace(wanted, opted_out=frozenset())
    for path in _shards(records):
        # A row that is only listed and was then refused has no bytes here, and its reject says why.
        for id_, kind, value in ids_in(store, path, listed if LISTING.search(path) else wanted):
            ids.add(id_)
            if kind in KINDS:
                matched.add((kind, value))
    before = -1
    while before < len(ids):
        before = len(ids)
        known = Gone(frozenset(ids), frozenset(), frozenset())
        for path in _shards(records):
            with open_parquet(store, path) as file:
                if {"id", "parent"} <= set(file.schema_arrow.names):
                    table = file.read(columns=["id", "parent"])
                    ids |= set(table.filter(known.names(table["parent"]))["id"].to_pylist())
    return frozenset(ids), len(wanted) - len(matched)


def _urls(store: Store, records: Mapping[str, StepRecord], ids: frozenset[str]) -> frozenset[str]:
    """URLs all of whose rows are forgotten: they are forgotten as well, under any other text.

    Read twice: which have such a row, then which of these have another one. So only these are held.
    """
    entering = {f: r for f, r in records.items() if r.manifest is None or not r.manifest.inputs}
    known = Gone(ids, frozenset(), frozenset())
    gone = {url for table in _listed(store, entering) for url in _canonical(table, known.names(table["id"]))}
    for table in _listed(store, entering) if gone else ():
        gone.difference_update(_canonical(table, pc.invert(known.names(table["id"]))))
    return frozenset(gone)


def _listed(store: Store, records: Mapping[str, StepRecord]) -> Iterator[pa.Table]:
    for path in _shards(records):
        with open_parquet(store, path) as file:
            if {"id", "url"} <= set(file.schema_arrow.names):
                yield file.read(columns=["id", "url"])


def _canonical(table: pa.Table, mask: pa.ChunkedArray) -> Iterator[str]:
    yield from (canonical_url(url) for url in table.filter(mask)["url"].to_pylist() if url)


def _shards(records: Mapping[str, StepRecord]) -> Iterator[str]:
    for record in records.values():
        yield from (receipt.shard.path for receipt in record.receipts)


def _touched(store: Store, record: StepRecord, gone: Gone) -> Touched:
    one = Touched(folder=record.folder)
    artifacts = record.manifest.artifacts if record.manifest else {}
    parquet = [f"{record.folder}/artifacts/{name}" for name in artifacts if name.endswith(".parquet")]
    for path in (*(r.shard.path for r in record.receipts), *parquet):
        ids, num, changes = looked_at(store, path, gone)
        if changes:
            one.files.append(path)
            if path not in parquet:
                one.num_rows += num
                one.ids |= ids
    for receipt in (r for r in record.receipts if r.rejects):
        _, num, changes = rejects_left(store, record.folder, receipt.index, gone)
        if changes:
            one.rejects.append(receipt.index)
            one.num_rejects += num
    for name in store.list(f"{record.folder}/_log"):
        if name.endswith(".jsonl"):
            path = f"{record.folder}/_log/{name}"
            num = log_lines(store, path, gone)[1]
            if num:
                one.logs.append(path)
                one.num_lines += num
    return one


def _models(records: Mapping[str, StepRecord], touched: Mapping[str, Touched]) -> list[Model]:
    """In the order of the folders, so what a model was made from comes before it."""
    by_key = {f"step:{r.manifest.step_key}": f for f, r in records.items() if r.manifest}
    found: dict[str, Model] = {}
    for folder, record in records.items():
        manifest = record.manifest
        if manifest is None or not _has_files(record):
            continue
        read = set().union(*(touched[f].ids for f in manifest.inputs if f in touched))
        before = tuple(f for f in dict.fromkeys(makers(manifest, by_key)) if f in found)
        if read or before:
            digest = manifest.artifact_digest("") or ""
            found[folder] = Model(folder=folder, digest=digest, num_rows=len(read), made_from=before)
    return list(found.values())


def _has_files(record: StepRecord) -> bool:
    """Artifacts that cannot be taken apart into rows."""
    return record.manifest is not None and any(not n.endswith(".parquet") for n in record.manifest.artifacts)


def tell(found: Found) -> Iterator[str]:
    """A line per folder, then the models."""
    names = [*(one.folder for one in found.folders), *(model.folder for model in found.models)]
    width = max(map(len, names), default=0)
    for one in found.folders:
        counts = (
            (len(one.ids), "row(s)"),
            (sum("/artifacts/" in path for path in one.files), "artifact(s)"),
            (one.num_rejects, "reject(s)"),
            (one.num_lines, "line(s) of its log"),
        )
        said = [f"{num:,} {what}" for num, what in counts if num]
        said += ["its unfinished parts"] if one.parts else []
        yield f"  {one.folder:{width}}  {', '.join(said) or 'what names them'}"
    if found.unmatched:
        yield f"{found.unmatched:,} of the entries mean no row here; they are kept in mind for later lists"
    if found.unread:
        yield f"not looked into, as these artifacts are no Parquet: {', '.join(found.unread)}"
    if found.models:
        yield "these know the rows, and stay as they are:"
    for model in found.models:
        said = [f"{model.num_rows:,} of the rows"] if model.num_rows else []
        said += [f"made from {name}" for name in model.made_from]
        yield f"  {model.folder:{width}}  {model.digest[:12]}  {', '.join(said)}"
