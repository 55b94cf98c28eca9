"""A step's records for `verify`: each file read by itself, so that a damaged one is named and the others still count."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

from vlpipe.pipeline.engine.records.manifest import Manifest, StepFile, manifest_from_json
from vlpipe.pipeline.engine.records.receipts import (
    Receipt,
    digest_shards,
    read_receipts,
    receipt_numbers,
    receipt_path,
    shard_path,
    sum_counts,
)
from vlpipe.pipeline.errors import cut
from vlpipe.pipeline.inspect.on_disk import StepRecord
from vlpipe.pipeline.inspect.verify.problems import Problem, read_or_problem
from vlpipe.pipeline.storage.checksummed_json import read_sealed
from vlpipe.pipeline.storage.file_names import STEP_FILE
from vlpipe.pipeline.storage.store import Store

RECEIPT, MANIFEST, STEP = TypeAdapter(Receipt), TypeAdapter(Manifest), TypeAdapter(StepFile)
SAID_TWICE = (  # by `_step.json` and by manifest.json
    "step",
    "use",
    "identity",
    "step_key",
    "stage_key",
    "params",
    "files",
    "inputs",
    "schema",
    "references",
    "artifact_references",
)


@dataclass
class Records:
    """`manifest`, `step`: None when it is not there or cannot be read; `is_finished`: the manifest is there. Receipts by
    number."""

    folder: str
    is_finished: bool
    step: StepFile | None = None
    manifest: Manifest | None = None
    receipts: dict[int, Receipt] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @property
    def record(self) -> StepRecord:
        return StepRecord(folder=self.folder, manifest=self.manifest, receipts=list(self.receipts.values()))

    def take(self, found: Any) -> Any:
        """What was read; None, and a problem more, when it could not be."""
        if isinstance(found, Problem):
            self.problems.append(found)
            return None
        return found


def read_records(store: Store, folder: str) -> Records:
    """Manifest and receipts as they lie there. Of a finished step both spellings of a receipt must say the same."""
    path = f"{folder}/manifest.json"
    found = Records(folder, is_finished=store.exists(path))
    about = f"{folder}/{STEP_FILE}"
    if found.is_finished or store.exists(about) or receipt_numbers(store, folder):
        found.step = found.take(read_or_problem(about, lambda: _step(store, about)))
    listed: list[Receipt] | None = None
    if found.is_finished:
        found.manifest = found.take(read_or_problem(path, lambda: _manifest(store, path)))
        shards = f"{folder}/_shards.parquet"
        listed = found.take(read_or_problem(shards, lambda: listed_receipts(store, folder)))
    numbers = receipt_numbers(store, folder)
    if listed is not None:
        found.receipts = {receipt.index: receipt for receipt in listed}
        for number in sorted({*found.receipts} - {*numbers}):
            found.problems.append(
                Problem(receipt_path(folder, number), "missing", "the manifest has this shard")
            )
    for number in numbers:
        _take_receipt(store, found, number, is_listed=listed is not None)
    if found.manifest is not None and listed is not None:
        found.problems += _forged(found.manifest, found)
    found.problems += _said_differently(found)
    return found


def step_file(store: Store, folder: str) -> StepFile | None:
    """What the folder says of its step; None when it does not."""
    found = read_or_problem(folder, lambda: _step(store, f"{folder}/{STEP_FILE}"))
    return None if isinstance(found, Problem) else found


def _said_differently(found: Records) -> Iterator[Problem]:
    """The folder's name, `_step.json` and manifest.json are about one step."""
    if found.step is None:
        return
    if not found.step.step_key.startswith(found.folder.rpartition("-")[2]):
        yield Problem(
            f"{found.folder}/{STEP_FILE}", "damaged", f"it is that of step key {found.step.step_key}"
        )
    for name in SAID_TWICE if found.manifest is not None else ():
        said = getattr(found.manifest, name), getattr(found.step, name)
        if json.dumps(said[0], sort_keys=True) != json.dumps(said[1], sort_keys=True):
            text = cut(f"{name} is {said[0]}, {STEP_FILE} says {said[1]}", 300)
            yield Problem(f"{found.folder}/manifest.json", "damaged", text)


def listed_receipts(store: Store, folder: str) -> list[Receipt]:
    """`_shards.parquet`. Raises when it holds what is no receipt."""
    receipts = read_receipts(store, folder)
    for receipt in receipts:
        RECEIPT.validate_json(json.dumps(receipt.to_json()), strict=True)
    return receipts


def _take_receipt(store: Store, found: Records, number: int, *, is_listed: bool) -> None:
    path = receipt_path(found.folder, number)
    receipt = found.take(read_or_problem(path, lambda: _receipt(store, path)))
    if receipt is None:
        return
    if receipt.index != number or receipt.shard.path != shard_path(found.folder, number):
        found.problems.append(Problem(path, "damaged", f"it speaks of {receipt.shard.path}"))
    elif is_listed and number in found.receipts and found.receipts[number] != receipt:
        found.problems.append(Problem(path, "damaged", "it is not what _shards.parquet has"))
    elif not is_listed:
        found.receipts[number] = receipt


def _receipt(store: Store, path: str) -> Receipt:
    value = read_sealed(store, path)
    RECEIPT.validate_json(json.dumps(value), strict=True)
    return Receipt.from_json(value)


def _manifest(store: Store, path: str) -> Manifest:
    value = read_sealed(store, path)
    MANIFEST.validate_json(json.dumps(value), strict=True)
    return manifest_from_json(value)


def _step(store: Store, path: str) -> StepFile:
    return STEP.validate_json(json.dumps(read_sealed(store, path)), strict=True)


def _forged(manifest: Manifest, found: Records) -> Iterator[Problem]:
    """Totals of the manifest that its receipts do not add up to."""
    receipts = list(found.receipts.values())
    rejects: Counter[str] = Counter()
    for receipt in receipts:
        rejects.update(receipt.rejects)
    wanted: dict[str, Any] = {
        "num_shards": len(receipts),
        "rows_in": sum(r.rows_in for r in receipts),
        "rows_out": sum(r.shard.num_rows for r in receipts),
        "rejects": dict(rejects),
        "counts": sum_counts(receipts),
        "bytes": sum(r.bytes for r in receipts),
        "shards_digest": digest_shards(r.shard for r in receipts),
    }
    for name, value in wanted.items():
        if getattr(manifest, name) != value:
            said = f"{name} is {getattr(manifest, name)}, its receipts say {value}"
            yield Problem(f"{found.folder}/manifest.json", "damaged", cut(said, 300))
    unknown = {r.source for r in receipts} - {*manifest.sources}
    if unknown:
        said = f"it does not name the code {', '.join(sorted(unknown))}, which made shards of it"
        yield Problem(f"{found.folder}/manifest.json", "damaged", said)
