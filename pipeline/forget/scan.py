"""Plans a forget: finds what `vlpipe forget` would remove, per folder, and which models were made from it. Read-only."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vlpipe.pipeline.engine.records.answers import part_paths, with_rows
from vlpipe.pipeline.engine.records.forgotten import canonical_url
from vlpipe.pipeline.forget.copied_texts import DONORS, find_taken
from vlpipe.pipeline.forget.json_artifacts import names_rows
from vlpipe.pipeline.forget.references import origins, rows_naming
from vlpipe.pipeline.forget.rows import URLS, ForgottenRows, RejectsLeft, log_left, looked_at, rejects_left
from vlpipe.pipeline.forget.steps import Step, folders_by_key, in_order
from vlpipe.pipeline.forget.urls import Urls, host_of_canonical
from vlpipe.pipeline.forget.wanted import KINDS, ForgetList
from vlpipe.pipeline.parquet.block_reads import blocks, each
from vlpipe.pipeline.parquet.text_sets import Mask, TextSet, TextSetMaker
from vlpipe.pipeline.shard import open_parquet
from vlpipe.pipeline.storage.store import Store

LISTING = re.compile(r"\.rows-[0-9a-f]{8}/")  # shards of the step that lists the input rows of a source


Bits = npt.NDArray[np.uint8]


@dataclass(kw_only=True)
class FolderChanges:
    """Changes to a step's folder. ids: removed rows, one bit per id in `ForgottenRows.ids`; heirs: rows that lose a copied
    text; files: shards and artifacts to rewrite; rejects: shard indices; num_orphans: rows that stay rejected as duplicates
    of forgotten ones; parts: whether the unfinished `work/` is removed."""

    folder: str
    ids: Bits
    heirs: set[str] = field(default_factory=set)
    files: list[str] = field(default_factory=list)
    rejects: list[int] = field(default_factory=list)
    num_rejects: int = 0
    num_orphans: int = 0
    logs: list[str] = field(default_factory=list)
    num_lines: int = 0
    parts: bool = False

    @property
    def num_ids(self) -> int:
        return num_set(self.ids)

    def __bool__(self) -> bool:
        return bool(self.files or self.rejects or self.logs or self.parts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A model, an export, or other artifacts that are not all Parquet, of a step that read forgotten rows.

    num_rows: forgotten rows it read; num_heirs: rows it read that copied texts from forgotten ones; made_from: folders of
    other affected models it read; copies: the artifacts are an export of the rows, so the step is removed and the next run
    rebuilds it.
    """

    folder: str
    digest: str
    num_rows: int
    num_heirs: int
    made_from: tuple[str, ...] = ()
    copies: bool = False


@dataclass(kw_only=True)
class ForgetPlan:
    """All changes of a forget."""

    gone: ForgottenRows
    num_rows: int  # distinct rows found in the root
    unmatched: Counter[str]  # kind -> number of list entries that match no row in this root
    folders: list[FolderChanges]
    models: list[Model]
    # Folders with artifacts that cannot be searched (neither Parquet nor JSON) and that are not in `models`.
    unread: list[str]
    steps: dict[str, Step]
    answers: dict[str, int] = field(default_factory=dict)  # file of recorded answers -> how many are removed


def find(store: Store, wanted: ForgetList, reads: Mapping[str, Sequence[str]]) -> ForgetPlan:
    """Returns all changes that forgetting the rows in `wanted` makes to the root. Searches every step's folder.

    reads: folder of a planned step -> the folders it reads; decides whether an unfinished step's `work/` is removed.
    """
    steps = in_order(store)
    ids, meant = _ids(store, steps, wanted)
    artifacts = (path for step in steps.values() for path in step.artifacts)
    taken = find_taken(store, chain(_shards(steps, "id", DONORS), artifacts), ids) if len(ids) else {}
    gone = ForgottenRows(ids, wanted.listed.urls.with_urls(_urls(store, steps, ids)), taken)
    folders = [_touched(store, step, gone) for step in steps.values()]
    touched = {one.folder: one for one in folders}
    for one in folders:
        if steps[one.folder].manifest is None and store.exists(f"{one.folder}/work"):
            above = reads.get(one.folder)  # None: unknown, so `work/` is removed to be safe
            one.parts = above is None or any(touched[f].files for f in above if f in touched)
    models = _models(steps, touched)
    answers = dict(with_rows(store, gone.with_heirs)) if len(ids) else {}
    seen = _all_bits([*(one.ids for one in folders), _bits_in_answers(store, answers, ids)])
    meant["id"] = np.isin(
        wanted.id.digests, ids.digests[np.unpackbits(seen, count=len(ids)).astype(np.bool_)]
    )
    return ForgetPlan(
        gone=gone,
        num_rows=num_set(seen),
        unmatched=Counter({kind: int((~meant[kind]).sum()) for kind in KINDS}),
        folders=[one for one in folders if one],
        models=models,
        unread=[f for f, s in steps.items() if _is_closed(s) and f not in {one.folder for one in models}],
        steps=steps,
        answers=answers,
    )


def made_from(found: ForgetPlan, folder: str) -> list[str]:
    """Returns a folder, the folders whose artifacts it read, and those that these read in turn."""
    by_key = folders_by_key(found.steps)
    several = [folder]
    for one in several:  # grows
        several += [above for above in found.steps[one].makers(by_key) if above not in several]
    return several


def num_set(bits: Bits) -> int:
    """Returns the number of set bits."""
    return int(np.bitwise_count(bits).sum())


def _all_bits(several: Iterable[Bits]) -> Bits:
    found = np.empty(0, np.uint8)
    for bits in several:
        found = bits | found if len(found) else bits
    return found


def _ids(store: Store, steps: Mapping[str, Step], wanted: ForgetList) -> tuple[TextSet, dict[str, Mask]]:
    """Returns ids of all rows that match the list, with their descendants; and kind -> mask over the entries of the list,
    True for those that match a row (all False for `id`, which `find` fills in)."""
    meant = {kind: np.zeros(len(wanted.of_kind(kind)), np.bool_) for kind in KINDS}
    maker = TextSetMaker("id")
    paths = [*_shards(steps, "id"), *part_paths(store)]
    if wanted.urls or len(wanted.sha256):
        listed = wanted.listed

        def meant_in(path: str) -> list[pa.ChunkedArray]:
            # Opt-outs do not match rows of a listing: such a row was never fetched, and its reject has the reason.
            return _meant_ids(store, path, listed if LISTING.search(path) else wanted, meant)

        for columns in each(meant_in, paths):
            for column in columns:
                maker.add_column(column)
    ids = wanted.id | maker.made()
    before = -1
    while before < len(ids):
        before = len(ids)
        maker = TextSetMaker("id")
        some = [
            (name, path)
            for step in steps.values()
            for name in origins(step.references)
            for path in _shards({step.folder: step}, "id", name)
        ]
        for columns in each(partial(_children, store, ids), some):
            for column in columns:
                maker.add_column(column)
        ids = ids | maker.made()
    return ids, meant


def _bits_in_answers(store: Store, paths: Iterable[str], ids: TextSet) -> Bits:
    """Returns one bit per id: whether a recorded answer is about its row."""
    found = np.zeros(len(ids), np.bool_)
    for path in paths:
        for table in _columns(store, path, "id"):
            places = ids.find(table["id"])
            found[places[places >= 0]] = True
    return np.packbits(found)


def _meant_ids(store: Store, path: str, wanted: ForgetList, meant: dict[str, Mask]) -> list[pa.ChunkedArray]:
    found = []
    for table in _columns(store, path, "id", more=("sha256", *URLS)):
        out = np.zeros(table.num_rows, np.bool_)
        if len(wanted.sha256) and "sha256" in table.schema.names:
            places = wanted.sha256.find(table["sha256"])
            meant["sha256"][places[places >= 0]] = True
            out |= places >= 0
        for name in URLS if wanted.urls else ():
            if name in table.schema.names:
                out |= wanted.urls.mask(table[name], meant)
        found.append(table["id"].filter(pa.array(out)))
    return found


def _children(store: Store, ids: TextSet, where: tuple[str, str]) -> list[pa.ChunkedArray]:
    """Returns ids of rows whose parent is in `ids` and that are not in `ids` themselves. where: (column, path)."""
    found = []
    for table in _columns(store, where[1], "id", where[0]):
        new = rows_naming(table[where[0]], ids) & ~ids.mask(table["id"])
        found.append(table["id"].filter(pa.array(new)))
    return found


def _urls(store: Store, steps: Mapping[str, Step], ids: TextSet) -> Urls:
    """Returns URLs whose rows are all forgotten, so that later rows with these URLs are forgotten too, whatever their text.

    Files are read twice, first for URLs with a forgotten row, then for other rows of these URLs, so that only these URLs
    are held in memory.
    """
    entering = {f: s for f, s in steps.items() if not s.inputs}
    paths = list(_shards(entering, "id", "url")) if len(ids) else []
    makers = TextSetMaker("url"), TextSetMaker("host")
    for several in each(partial(_urls_of_gone, store, ids), paths):
        makers[0].add(*several)
        makers[1].add(*map(host_of_canonical, several))
    urls = Urls(urls=makers[0].made(), hosts=makers[1].made())
    shared = {"url": np.zeros(len(urls.urls), np.bool_)}
    for _ in each(partial(_note_shared, store, ids, urls, shared), paths if urls else ()):
        pass
    return Urls(urls=urls.urls.where(~shared["url"]), hosts=urls.hosts)


def _urls_of_gone(store: Store, ids: TextSet, path: str) -> list[str]:
    found: list[str] = []
    for table in _columns(store, path, "id", "url"):
        urls = table["url"].filter(pa.array(ids.mask(table["id"]))).to_pylist()
        found += [canonical_url(url) for url in urls if url]
    return found


def _note_shared(store: Store, ids: TextSet, urls: Urls, shared: dict[str, Mask], path: str) -> None:
    for table in _columns(store, path, "id", "url"):
        urls.mask(table["url"].filter(pa.array(~ids.mask(table["id"]))), shared)


def _columns(store: Store, path: str, *needed: str, more: Sequence[str] = ()) -> Iterator[pa.Table]:
    """Yields blocks of rows with the columns `needed` and `more`; nothing if a needed column is missing."""
    with open_parquet(store, path) as file:
        names = [n for n in file.schema_arrow.names if n in needed or n in more]
        if set(needed) <= set(names):
            yield from (table for _, table in blocks(file, names))


def _shards(steps: Mapping[str, Step], *columns: str) -> Iterator[str]:
    """Yields the shard paths of all steps that may have these columns."""
    yield from chain.from_iterable(step.paths for step in steps.values() if step.may_have(*columns))


def _touched(store: Store, step: Step, gone: ForgottenRows) -> FolderChanges:
    one = FolderChanges(folder=step.folder, ids=np.zeros((len(gone.ids) + 7) // 8, np.uint8))
    found = np.zeros(len(gone.ids), np.bool_)
    paths = list(step.paths)
    for path, seen in zip(
        paths, each(lambda path: looked_at(store, path, gone, step.references), paths), strict=True
    ):
        if seen.changes:
            one.files.append(path)
        for places in seen.ids:
            found[places] = True
        one.heirs |= seen.heirs
    one.ids = np.packbits(found)
    for path in step.artifacts:
        if looked_at(store, path, gone, step.references_of(path)).changes:
            one.files.append(path)
    one.files += [path for path in step.json_artifacts if names_rows(store, path, gone)]
    _look_at_rejects(store, step, gone, one)
    _look_at_logs(store, step, gone, one)
    return one


def _look_at_rejects(store: Store, step: Step, gone: ForgottenRows, one: FolderChanges) -> None:
    def look(index: int) -> RejectsLeft:
        return rejects_left(store, step.folder, index, gone)

    for index, left in zip(step.rejected, each(look, step.rejected), strict=True):
        if left.changes:
            one.rejects.append(index)
            one.num_rejects += left.num_gone
            one.num_orphans += left.num_orphans


def _look_at_logs(store: Store, step: Step, gone: ForgottenRows, one: FolderChanges) -> None:
    names = store.list(f"{step.folder}/_log")
    paths = [f"{step.folder}/_log/{name}" for name in names if not name.endswith((".json", ".part"))]
    for path, (_, num) in zip(paths, each(lambda path: log_left(store, path, gone), paths), strict=True):
        if num:
            one.logs.append(path)
            one.num_lines += num


def _models(steps: Mapping[str, Step], touched: Mapping[str, FolderChanges]) -> list[Model]:
    """Returns the affected models in the order of `steps`, so that a model comes after those it was made from."""
    by_key = folders_by_key(steps)
    found: dict[str, Model] = {}
    for folder, step in steps.items():
        manifest = step.manifest
        if manifest is None or not _has_files(step):
            continue
        above = [touched[f] for f in step.inputs if f in touched]
        rows = num_set(_all_bits(t.ids for t in above)) if above else 0
        heirs = len(set().union(*(t.heirs for t in above)))
        before = tuple(f for f in dict.fromkeys(step.makers(by_key)) if f in found)
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
    """True if the step has an artifact that is not Parquet, such as weights or a tar."""
    return step.manifest is not None and any(not n.endswith(".parquet") for n in step.manifest.artifacts)


def _is_closed(step: Step) -> bool:
    """True if the step has artifacts that cannot be searched for rows (neither Parquet nor JSON) and are not an export."""
    names = step.manifest.artifacts if step.manifest and not step.manifest.copies else ()
    return any(not name.endswith((".parquet", ".json")) for name in names)
