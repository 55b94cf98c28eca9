"""`forget`: take rows out of every step's files, as if they had never been listed. Models stay, and are named.

A plan is written to `_forget.json` first and removed last; each thing it names can be done twice. So a forget that was
killed is finished by doing all of it again, and nothing else runs in the root before that.
Digests change and keys do not: a key says what a shard was made from, and that has not changed.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.forget_find import Found
from vlpipe.pipeline.forget_rows import Gone, rewrite, rewrite_log, rewrite_rejects, with_digest
from vlpipe.pipeline.forgotten import add_forgotten
from vlpipe.pipeline.keys import sha256_json
from vlpipe.pipeline.receipt import (
    Receipt,
    digest_inputs,
    manifest_from_json,
    read_receipt,
    write_manifest,
    write_receipt,
)
from vlpipe.pipeline.records import StepRecord
from vlpipe.pipeline.shard import Shard
from vlpipe.pipeline.store import Store
from vlpipe.pipeline.verify import left_over

JOURNAL = "_forget.json"
FOLDERS = ("", "/_receipts", "/_rejects", "/_log", "/artifacts")


def forget(store: Store, found: Found) -> None:
    """Needs the root's lock."""
    touched = {
        one.folder: {"files": one.files, "rejects": one.rejects, "logs": one.logs, "parts": one.parts}
        for one in found.folders
    }
    trained = {model.folder: model.num_rows for model in found.models}
    plan = {
        "ids": sorted(found.gone.ids),
        "urls": sorted(found.gone.urls),
        "domains": sorted(found.gone.domains),
        "touched": touched,
        "trained": trained,
        "records": {folder: _to_json(record) for folder, record in found.records.items()},
    }
    store.write_json(JOURNAL, plan)
    finish(store)


def is_half_done(store: Store) -> bool:
    return store.exists(JOURNAL)


def refuse_half_done(store: Store) -> None:
    """VlpipeError when a forget was killed here: what lies on disk is half before and half after it."""
    if is_half_done(store):
        raise VlpipeError(f"a forget in {store.url} was interrupted; `vlpipe run` finishes it first")


def finish(store: Store) -> bool:
    """Do what the plan says, all of it, whether some of it is done or not; False when there is no plan."""
    if not is_half_done(store):
        return False
    plan = store.read_json(JOURNAL)
    gone = Gone(*(frozenset(plan[kind]) for kind in ("ids", "urls", "domains")))
    add_forgotten(store, id=gone.ids, url=gone.urls, domain=gone.domains)
    records = {folder: _from_json(folder, value) for folder, value in plan["records"].items()}
    made = _Made(store, {f: r for f, r in records.items() if store.exists(f)})
    for folder in made.records:
        _clear(store, made.records[folder])
        made.files(folder, plan["touched"].get(folder, {}), gone)
    for folder in made.records:
        made.write_records(folder, plan["trained"].get(folder, 0))
        store.sync(*(folder + sub for sub in FOLDERS))
    store.remove(JOURNAL)
    return True


def _to_json(record: StepRecord) -> dict[str, Any]:
    manifest = asdict(record.manifest) if record.manifest else None
    return {"manifest": manifest, "receipts": [r.to_json() for r in record.receipts]}


def _from_json(folder: str, value: Mapping[str, Any]) -> StepRecord:
    manifest = manifest_from_json(value["manifest"]) if value["manifest"] else None
    receipts = [Receipt.from_json(r) for r in value["receipts"]]
    return StepRecord(folder=folder, manifest=manifest, receipts=receipts)


def _clear(store: Store, record: StepRecord) -> None:
    """What killed runs left may hold rows too, and no step reads it."""
    for problem in list(left_over(store, record)):
        store.remove(problem.path)
    if record.manifest is None:
        store.remove(f"{record.folder}/artifacts")


@dataclass
class _Made:
    """`records`: as they were before; the dicts hold what was made, by path."""

    store: Store
    records: dict[str, StepRecord]
    shards: dict[str, Shard] = field(default_factory=dict)
    stats: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    rejects: dict[tuple[str, int], dict[str, int]] = field(default_factory=dict)

    def files(self, folder: str, touched: Mapping[str, Any], gone: Gone) -> None:
        for path in touched.get("files", ()):
            self.stats[path] = {}
            self.shards[path] = rewrite(self.store, path, gone, self.stats[path])
        for index in touched.get("rejects", ()):
            self.rejects[folder, index] = rewrite_rejects(self.store, folder, index, gone)
        for path in touched.get("logs", ()):
            if self.store.exists(path):
                rewrite_log(self.store, path, gone)
        if touched.get("parts"):
            self.store.remove(f"{folder}/work")

    @cached_property
    def by_digest(self) -> dict[str, Shard]:
        """Shards as they were. Those with the same digest hold the same rows, before and after."""
        return {r.shard.digest: r.shard for record in self.records.values() for r in record.receipts}

    def shard(self, old: Shard) -> Shard:
        made = self.shards.get(old.path)
        return old if made is None else with_digest(old, made)

    def num_gone(self, old: Shard) -> int:
        return old.num_rows - self.shard(old).num_rows

    def artifacts(self, folder: str) -> dict[str, str]:
        """Digests of a step's artifacts as they are now."""
        manifest = self.records[folder].manifest
        now = {
            name: self.shards.get(f"{folder}/artifacts/{name}")
            for name in (manifest.artifacts if manifest else {})
        }
        return {
            name: one.digest if one else manifest.artifacts[name] for name, one in now.items() if manifest
        }

    def write_records(self, folder: str, num_trained: int) -> None:
        """Receipts, then `_shards.parquet` and the manifest, where they are not what they were."""
        record = self.records[folder]
        change = _Change(self, record)
        receipts = [change.receipt(r) for r in record.receipts]
        for receipt in receipts:
            if read_receipt(self.store, folder, receipt.index) != receipt:
                write_receipt(self.store, folder, receipt)
        manifest = record.manifest
        if manifest is None:
            return
        rejects: Counter[str] = Counter()
        for receipt in receipts:
            rejects.update(receipt.rejects)
        new = dataclasses.replace(
            manifest,
            inputs_digest=change.inputs_digest(manifest.inputs_digest),
            rows_in=sum(r.rows_in for r in receipts),
            rows_out=sum(r.shard.num_rows for r in receipts),
            rejects=dict(sorted(rejects.items())),
            artifacts=self.artifacts(folder),
            forgotten=manifest.forgotten + num_trained,
        )
        if new != manifest or receipts != record.receipts:
            write_manifest(self.store, folder, new, receipts)


class _Change:
    """Old digests to new ones, for the records of one step."""

    def __init__(self, made: _Made, record: StepRecord) -> None:
        self.made, self.record = made, record
        self.inputs = self._inputs()
        self._artifacts = dict(self._artifact_digests())

    def _inputs(self) -> list[Shard]:
        names = self.record.manifest.inputs if self.record.manifest else ()
        return [
            r.shard for name in names if name in self.made.records for r in self.made.records[name].receipts
        ]

    def receipt(self, old: Receipt) -> Receipt:
        made, path = self.made, old.shard.path
        above = made.by_digest.get(old.input_digest)
        if above is not None:
            input_digest, fewer = made.shard(above).digest, made.num_gone(above)
        else:
            input_digest = self.inputs_digest(old.input_digest)
            fewer = sum(made.num_gone(s) for s in self.inputs) if old.rows_in else 0
        return dataclasses.replace(
            old,
            shard=made.shard(old.shard),
            bytes=made.store.size(path),
            rows_in=old.rows_in - fewer,
            input_digest=input_digest,
            artifacts_digest=self._artifacts.get(old.artifacts_digest, old.artifacts_digest),
            rejects=made.rejects.get((self.record.folder, old.index), old.rejects),
            forgotten=old.forgotten + made.num_gone(old.shard),
            columns=made.stats.get(path, old.columns),
        )

    def inputs_digest(self, old: str) -> str:
        """The digest over inputs and artifacts as they are now; one that was out of date before stays so."""
        for before, after in self._artifacts.items():
            if digest_inputs(self.inputs, before) == old:
                return digest_inputs([self.made.shard(s) for s in self.inputs], after)
        return old

    def _artifact_digests(self) -> Iterator[tuple[str, str]]:
        """Old to new digest over all files, and over all but one: a list does not count where it only lists rows."""
        files = list(self._files())
        yield "", ""
        for left_out in (None, *range(len(files))):
            some = [pair for n, pair in enumerate(files) if n != left_out]
            if some:
                yield sha256_json(sorted(a for a, _ in some)), sha256_json(sorted(b for _, b in some))

    def _files(self) -> Iterator[tuple[str, str]]:
        """Old and new digest of each file parameter."""
        manifest = self.record.manifest
        if manifest is None:
            return
        folders = {f"step:{r.manifest.step_key}": f for f, r in self.made.records.items() if r.manifest}
        written = dict(_references(manifest.params))
        for name, digest in manifest.files.items():
            if digest not in folders:
                yield digest, digest
                continue
            before = self.made.records[folders[digest]].manifest
            assert before is not None
            after = dataclasses.replace(before, artifacts=self.made.artifacts(folders[digest]))
            path = written.get(name.removeprefix("source."), "")  # `NAME.rows` has them from its source
            yield before.artifact_digest(path) or "", after.artifact_digest(path) or ""


def _references(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(dotted field, path of the artifact) of each `{from: STEP, path: NAME}` in the parameters."""
    if isinstance(value, Mapping):
        if "from" in value and set(value) <= {"from", "path"}:
            yield path, str(value.get("path", ""))
        for key, item in value.items():
            yield from _references(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for key, item in enumerate(value):
            yield from _references(item, f"{path}.{key}" if path else str(key))
