"""Applies a forget: removes rows from every step's files as if they had never been listed. Models are kept and reported.

The journal `_forget.json` is written first and removed last, and every action in it is idempotent. A killed forget is
therefore finished by repeating all of it, and nothing else runs in the root before that. Beside the journal are the old
receipts of the steps that change, one file per step, which are read one at a time.
Digests change but keys do not, because a key identifies what a shard was made from, which is still the same.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow.parquet as pq

from vlpipe.pipeline.engine.records.answers import without_rows
from vlpipe.pipeline.engine.records.file_digests import FileDigests
from vlpipe.pipeline.engine.records.forget_journal import BEFORE, JOURNAL, is_half_done
from vlpipe.pipeline.engine.records.forgotten import add_forgotten
from vlpipe.pipeline.engine.records.manifest import (
    Manifest,
    digest_artifacts,
    digest_inputs,
    manifest_from_json,
    read_manifest,
    write_manifest,
)
from vlpipe.pipeline.engine.records.receipts import (
    Receipt,
    digest_shards,
    read_receipt,
    receipts_in,
    write_receipt,
    write_receipts,
)
from vlpipe.pipeline.forget.copied_texts import CopiedTexts
from vlpipe.pipeline.forget.json_artifacts import rewrite_json
from vlpipe.pipeline.forget.rows import ForgottenRows, rewrite, rewrite_log, rewrite_rejects, with_digest
from vlpipe.pipeline.forget.scan import ForgetPlan
from vlpipe.pipeline.forget.steps import Step, folders_by_key, in_order
from vlpipe.pipeline.forget.urls import Urls
from vlpipe.pipeline.inspect.on_disk import StepRecord, read_step, step_folders
from vlpipe.pipeline.inspect.verify.run import left_over
from vlpipe.pipeline.parquet.block_reads import each
from vlpipe.pipeline.parquet.text_sets import TextSet, sets_from_table, sets_to_table
from vlpipe.pipeline.shard import Heavy, Shard, open_parquet
from vlpipe.pipeline.storage.store import Store

GONE = f"{BEFORE}/gone.parquet"
Stats = dict[str, dict[str, Any]]
FOLDERS = ("", "/_receipts", "/_rejects", "/_log", "/artifacts")


def forget(store: Store, found: ForgetPlan) -> None:
    """Removes the rows in `found` from the root. The caller holds the root's lock."""
    copies = [model.folder for model in found.models if model.copies]
    changing = _changing(found, copies)
    store.remove(BEFORE)
    for step in changing:
        write_receipts(store, _before(step.folder), read_step(store, step.folder).receipts)
    touched = {
        one.folder: {"files": one.files, "rejects": one.rejects, "logs": one.logs, "parts": one.parts}
        for one in found.folders
    }
    plan = {
        "taken": {id_: sorted(words) for id_, words in found.gone.taken.items()},
        "touched": touched,
        "trained": {model.folder: model.num_rows + model.num_heirs for model in found.models},
        "copies": copies,
        "answers": sorted(found.answers),
        "steps": [[one.folder, asdict(one.manifest) if one.manifest else None] for one in changing],
    }
    _write_gone(store, found.gone)
    store.write_json(JOURNAL, plan)
    finish(store)


def _write_gone(store: Store, gone: ForgottenRows) -> None:
    """Writes hashes of the ids, URLs, hosts and domains to forget to the file GONE; none of them is in it as text."""
    urls = gone.urls
    table = sets_to_table(gone.ids, urls.urls, urls.hosts, urls.domains)
    with store.writing(GONE) as part:
        pq.write_table(table, part, compression="zstd")


def _read_gone(store: Store, taken: CopiedTexts) -> ForgottenRows:
    with open_parquet(store, GONE) as file:
        sets = sets_from_table(file.read())
    kinds = ("id", "url", "host", "domain")
    ids, urls, hosts, domains = (sets.get(kind) or TextSet(kind) for kind in kinds)
    return ForgottenRows(ids, Urls(urls=urls, hosts=hosts, domains=domains), taken)


def _before(folder: str) -> str:
    return f"{BEFORE}/{folder}.parquet"


def _changing(found: ForgetPlan, copies: Iterable[str]) -> list[Step]:
    """Returns the steps whose records may change: they have forgotten rows, read a step that changes, or are not finished.

    copies: folders of exports, which are removed as a whole and left out.
    """
    by_key = folders_by_key(found.steps)
    known = {one.folder for one in found.folders}
    for step in found.steps.values():
        if step.manifest is None or any(above in known for above in step.above(by_key)):
            known.add(step.folder)
    return [step for step in found.steps.values() if step.folder in known and step.folder not in copies]


def finish(store: Store) -> bool:
    """Applies the whole journal, also if parts of it are already done. Returns False if there is no journal.

    The caller holds the root's lock.
    """
    if not is_half_done(store):
        store.remove(BEFORE)  # left by a forget that was killed before it wrote the journal
        return False
    plan = store.read_json(JOURNAL)
    taken = {id_: frozenset(words) for id_, words in plan["taken"].items()}
    gone = _read_gone(store, taken)
    urls = gone.urls
    add_forgotten(store, id=gone.ids.digests, url=urls.urls.digests, domain=urls.domains.digests)
    for path in plan.get("answers", ()):  # an older version wrote none
        without_rows(store, path, gone.with_heirs)
    for folder in plan["copies"]:
        store.remove(f"{folder}/manifest.json")  # a half-removed step must not look done
        store.remove(folder)
    before = {folder: manifest_from_json(value) if value else None for folder, value in plan["steps"]}
    made = _Made(
        store, in_order(store), before, {f: read_manifest(store, f) for f in step_folders(store)} | before
    )
    for folder in made.manifests:
        _clear(store, made.record(folder))
    for folder in before:
        record = made.record(folder)
        made.files(record, plan["touched"].get(folder, {}), gone)
        made.write_records(record, plan["trained"].get(folder, 0))
        store.sync(*(folder + sub for sub in FOLDERS))
    store.remove(FileDigests.REL)  # it has the names of input files, forgotten ones too; it is made anew
    store.remove(JOURNAL)
    store.remove(BEFORE)
    return True


def _clear(store: Store, record: StepRecord) -> None:
    """Removes files that killed runs left behind: they may contain forgotten rows, and no step reads them."""
    for problem in list(left_over(store, record)):
        store.remove(problem.path)
    if record.manifest is None:
        store.remove(f"{record.folder}/artifacts")


@dataclass
class _Made:
    """The rewritten files so far, from which new records are made.

    before: old manifests of the steps that change; manifests: those and the current ones of other steps; shards: path ->
    rewritten file; stats: path -> its column statistics; rejects: (folder, shard index) -> (counts, digest) as rewritten;
    old: digest -> shard before it was rewritten.
    """

    store: Store
    steps: Mapping[str, Step]
    before: Mapping[str, Manifest | None]
    manifests: Mapping[str, Manifest | None]
    shards: dict[str, Shard] = field(default_factory=dict)
    old: dict[str, Shard] = field(default_factory=dict)
    stats: dict[str, Stats] = field(default_factory=dict)
    rejects: dict[tuple[str, int], tuple[dict[str, int], str]] = field(default_factory=dict)

    def record(self, folder: str) -> StepRecord:
        """Returns the old records of a step. They are not cached: for 100,000 shards they take half a gigabyte."""
        if folder not in self.before:
            return read_step(self.store, folder)
        receipts = receipts_in(self.store, _before(folder))
        return StepRecord(folder=folder, manifest=self.before[folder], receipts=receipts)

    def files(self, record: StepRecord, touched: Mapping[str, Any], gone: ForgottenRows) -> None:
        """Rewrites the files of a step that contain forgotten rows.

        touched: paths of `files` and `logs`, shard indices of `rejects`, and `parts`: whether to remove `work/`.
        """
        step = self.steps[record.folder]
        paths, indices = touched.get("files", ()), touched.get("rejects", ())
        for path, (shard, stats) in zip(
            paths, each(lambda path: self._file(step, path, gone), paths), strict=True
        ):
            self.shards[path] = shard
            self.stats[path] = stats
        # Shards with the same digest contain the same rows, before and after the change.
        self.old |= {r.shard.digest: r.shard for r in record.receipts if r.shard.path in self.shards}
        rejects = each(lambda index: rewrite_rejects(self.store, record.folder, index, gone), indices)
        self.rejects |= {(record.folder, n): made for n, made in zip(indices, rejects, strict=True)}
        logs = (path for path in touched.get("logs", ()) if self.store.exists(path))
        for _ in each(lambda path: rewrite_log(self.store, path, gone), logs):
            pass
        if touched.get("parts"):
            self.store.remove(f"{record.folder}/work")

    def _file(self, step: Step, path: str, gone: ForgottenRows) -> tuple[Shard, Stats]:
        if path.endswith(".json"):
            return rewrite_json(self.store, path, gone), {}
        stats: Stats = {}
        return rewrite(self.store, path, gone, step.references_of(path), stats), stats

    def digest(self, old: str) -> str:
        """Returns the new digest of the shard whose digest was `old`; `old` if that shard is not rewritten."""
        shard = self.old.get(old)
        return old if shard is None else self.shards[shard.path].digest

    def shard(self, old: Shard) -> Shard:
        """Returns `old`, with new digests and number of rows if its file or one with its heavy columns was rewritten."""
        made = self.shards.get(old.path)
        new = old if made is None else with_digest(old, made)
        heavy = tuple(map(self._heavy, old.heavy))
        return new if heavy == old.heavy else dataclasses.replace(new, heavy=heavy)

    def _heavy(self, old: Heavy) -> Heavy:
        shard = self.old.get(old.digest)
        if shard is None:
            return old
        made = self.shards[shard.path]
        return old._replace(digest=made.digest, footer=made.footer)

    def num_gone(self, old: Shard) -> int:
        """Returns the number of rows that were removed from a shard."""
        return old.num_rows - self.shard(old).num_rows

    def artifacts(self, folder: str) -> dict[str, str]:
        """Returns name -> new digest of a step's artifacts."""
        manifest = self.manifests[folder]
        before = manifest.artifacts if manifest else {}
        now = {name: self.shards.get(f"{folder}/artifacts/{name}") for name in before}
        return {name: one.digest if one else before[name] for name, one in now.items()}

    def write_records(self, record: StepRecord, num_trained: int) -> None:
        """Writes the receipts that changed, then `_shards.parquet` and the manifest if they changed.

        num_trained: rows that its model read and that are forgotten or lose a text; added to `forgotten` in the manifest.
        """
        change = _Change(self, record)
        receipts = [change.receipt(r) for r in record.receipts]
        for old, receipt in zip(record.receipts, receipts, strict=True):
            if receipt != old and read_receipt(self.store, record.folder, receipt.index) != receipt:
                write_receipt(self.store, record.folder, receipt)
        manifest = record.manifest
        if manifest is None:
            return
        rejects: Counter[str] = Counter()
        for receipt in receipts:
            rejects.update(receipt.rejects)
        new = dataclasses.replace(
            manifest,
            inputs_digest=change.inputs_digest(manifest.inputs_digest),
            shards_digest=digest_shards(r.shard for r in receipts),
            read=change.read,
            bytes=sum(r.bytes for r in receipts),
            rows_in=sum(r.rows_in for r in receipts),
            rows_out=sum(r.shard.num_rows for r in receipts),
            rejects=dict(sorted(rejects.items())),
            artifacts=self.artifacts(record.folder),
            forgotten=manifest.forgotten + num_trained,
        )
        if new != manifest or receipts != record.receipts:
            write_manifest(self.store, record.folder, new, receipts)


class _Change:
    """Maps old digests to new ones in the records of one step."""

    def __init__(self, made: _Made, record: StepRecord) -> None:
        self.made, self.step = made, made.steps[record.folder]
        self.record = record
        names = self.step.inputs
        before = [[r.shard for r in made.record(n).receipts] for n in names if n in made.manifests]
        after = [[made.shard(s) for s in shards] for shards in before]
        self._num_gone = sum(made.num_gone(s) for shards in before for s in shards)
        old_read = dict(record.manifest.read) if record.manifest else dict(self._read_before())
        self.read = {name: self._artifacts_now(name, digest) for name, digest in old_read.items()}
        self._artifacts = {digest_artifacts(old_read): digest_artifacts(self.read)}
        shards_digests = [[digest_shards(shards) for shards in side] for side in (before, after)]
        self._inputs = {
            digest_inputs(shards_digests[0], a): digest_inputs(shards_digests[1], b)
            for a, b in {**self._artifacts, "": ""}.items()
        }

    def receipt(self, old: Receipt) -> Receipt:
        """Returns the receipt of a shard after the forget: new digests, counts and number of rows."""
        made, path = self.made, old.shard.path
        above = made.old.get(old.input_digest)
        if above is not None:
            input_digest, fewer = made.shard(above).digest, made.num_gone(above)
        else:
            input_digest = self.inputs_digest(old.input_digest)
            fewer = self._num_gone if old.rows_in and old.input_digest in self._inputs else 0
        made_rejects = made.rejects.get((self.record.folder, old.index))
        rejects, rejects_digest = made_rejects or (old.rejects, old.rejects_digest)
        return dataclasses.replace(
            old,
            shard=made.shard(old.shard),
            bytes=made.store.size(path) if path in made.shards else old.bytes,
            rows_in=old.rows_in - fewer,
            input_digest=input_digest,
            input_heavy={name: made.digest(d) for name, d in old.input_heavy.items()},
            artifacts_digest=self._artifacts.get(old.artifacts_digest, old.artifacts_digest),
            rejects=rejects,
            rejects_digest=rejects_digest,
            forgotten=old.forgotten + made.num_gone(old.shard),
            columns=made.stats.get(path, old.columns),
        )

    def inputs_digest(self, old: str) -> str:
        """Returns the new digest over inputs and artifacts. A digest that was already out of date is returned unchanged."""
        return self._inputs.get(old, old)

    def _read_before(self) -> Iterator[tuple[str, str]]:
        """Yields (file parameter, digest) of what an unfinished step read, from the manifests before the forget."""
        for name, digest in self.step.files.items():
            maker, path = self._maker(name)
            made = self.made.manifests.get(maker)
            yield name, (made.artifact_digest(path) if made else None) or digest

    def _artifacts_now(self, name: str, old: str) -> str:
        """Returns the new digest of what file parameter `name` reads; `old` if no step made it, or if it is out of date."""
        maker, path = self._maker(name)
        before = self.made.manifests.get(maker)
        if before is None or before.artifact_digest(path) != old:
            return old  # not made by a step, or already out of date
        after = dataclasses.replace(before, artifacts=self.made.artifacts(maker))
        return after.artifact_digest(path) or ""

    def _maker(self, name: str) -> tuple[str, str]:
        """Returns (step folder, artifact path) that a file parameter reads; the folder is empty if no step made it."""
        folders = folders_by_key(self.made.steps)
        written = dict(_references(self.step.params))
        # A listing step `NAME.rows` has the parameters of its source.
        path = written.get(name.removeprefix("source."), "")
        return folders.get(self.step.files.get(name, ""), ""), path


def _references(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yields (dotted field, NAME or "") of each `{from: STEP, path: NAME}` in a value. path: dotted field of the value."""
    if isinstance(value, Mapping):
        if "from" in value and set(value) <= {"from", "path"}:
            yield path, str(value.get("path", ""))
        for key, item in value.items():
            yield from _references(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for key, item in enumerate(value):
            yield from _references(item, f"{path}.{key}" if path else str(key))
