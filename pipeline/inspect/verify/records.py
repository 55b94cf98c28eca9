"""Reads the records of a step for `verify`, file by file: a damaged file becomes a Problem and the others are still read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

from vlpipe.pipeline.engine.records.manifest import Manifest, StepFile, manifest_from_json
from vlpipe.pipeline.engine.records.receipts import (
    Receipt,
    digest_shards,
    receipt_numbers,
    receipt_path,
    shard_path,
    sum_counts,
)
from vlpipe.pipeline.errors import cut
from vlpipe.pipeline.inspect.on_disk import StepRecord
from vlpipe.pipeline.inspect.verify.problems import Problem, read_or_problem
from vlpipe.pipeline.inspect.verify.steps import RECEIPT, Steps
from vlpipe.pipeline.storage.checksummed_json import read_sealed
from vlpipe.pipeline.storage.file_names import STEP_FILE
from vlpipe.pipeline.storage.store import Store

MANIFEST = TypeAdapter(Manifest)
SAID_TWICE = (  # fields that are in `_step.json` and in manifest.json
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
    """The records of a step, and the problems found while reading them.

    is_finished: manifest.json exists; step, manifest: content of `_step.json` and manifest.json, None if the file is
    missing or damaged; receipts: shard index -> receipt.
    """

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
        """Returns `found`; if it is a Problem, adds it to `problems` and returns None."""
        if isinstance(found, Problem):
            self.problems.append(found)
            return None
        return found


def read_records(steps: Steps, folder: str) -> Records:
    """Returns the records of a step's folder, with a Problem for each file that is missing, damaged or inconsistent.

    A finished step stores each receipt twice, in `_receipts/NUMBER.json` and in `_shards.parquet`; both must be equal.
    """
    store, path = steps.store, f"{folder}/manifest.json"
    found = Records(folder, is_finished=store.exists(path))
    numbers = receipt_numbers(store, folder)
    if found.is_finished or numbers or store.exists(f"{folder}/{STEP_FILE}"):
        found.step = found.take(steps.step_file(folder))
    listed: Sequence[Receipt] | None = None
    if found.is_finished:
        found.manifest = found.take(read_or_problem(path, lambda: _manifest(store, path)))
        listed = found.take(steps.listed(folder))
    if listed is not None:
        found.receipts = {receipt.index: receipt for receipt in listed}
        for number in sorted({*found.receipts} - {*numbers}):
            found.problems.append(
                Problem(receipt_path(folder, number), "missing", "_shards.parquet lists this shard")
            )
    for number in numbers:
        _take_receipt(store, found, number, is_listed=listed is not None)
    if found.manifest is not None and listed is not None:
        found.problems += _forged(found.manifest, found)
    found.problems += _said_differently(found)
    return found


def _said_differently(found: Records) -> Iterator[Problem]:
    """Yields problems if the folder's name, `_step.json` and manifest.json do not describe the same step."""
    if found.step is None:
        return
    if not found.step.step_key.startswith(found.folder.rpartition("-")[2]):
        yield Problem(
            f"{found.folder}/{STEP_FILE}",
            "damaged",
            f"its step key {found.step.step_key} does not match the folder's name",
        )
    for name in SAID_TWICE if found.manifest is not None else ():
        said = getattr(found.manifest, name), getattr(found.step, name)
        if json.dumps(said[0], sort_keys=True) != json.dumps(said[1], sort_keys=True):
            text = cut(f"{name} is {said[0]}, but {said[1]} in {STEP_FILE}", 300)
            yield Problem(f"{found.folder}/manifest.json", "damaged", text)


def _take_receipt(store: Store, found: Records, number: int, *, is_listed: bool) -> None:
    path = receipt_path(found.folder, number)
    receipt = found.take(read_or_problem(path, lambda: _receipt(store, path)))
    if receipt is None:
        return
    if receipt.index != number or receipt.shard.path != shard_path(found.folder, number):
        found.problems.append(Problem(path, "damaged", f"it is the receipt of {receipt.shard.path}"))
    elif is_listed and number in found.receipts and found.receipts[number] != receipt:
        found.problems.append(Problem(path, "damaged", "it differs from its row in _shards.parquet"))
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


def _forged(manifest: Manifest, found: Records) -> Iterator[Problem]:
    """Yields problems for totals in the manifest that differ from the receipts, and for code hashes missing in `sources`."""
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
            said = f"{name} is {getattr(manifest, name)}, but its receipts give {value}"
            yield Problem(f"{found.folder}/manifest.json", "damaged", cut(said, 300))
    unknown = {r.source for r in receipts} - {*manifest.sources}
    if unknown:
        said = f"sources lacks the code that made some of its shards: {', '.join(sorted(unknown))}"
        yield Problem(f"{found.folder}/manifest.json", "damaged", said)
