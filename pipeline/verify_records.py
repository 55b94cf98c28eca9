"""A step's records for `verify`: each file read by itself, so that a damaged one is named and the others still count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

from vlpipe.pipeline.manifest import Manifest, manifest_from_json
from vlpipe.pipeline.problems import Problem, read_or_problem
from vlpipe.pipeline.receipt import (
    Receipt,
    read_receipts,
    receipt_numbers,
    receipt_path,
    shard_path,
    sum_counts,
)
from vlpipe.pipeline.records import StepRecord
from vlpipe.pipeline.store import Store

RECEIPT = TypeAdapter(Receipt)
MANIFEST = TypeAdapter(Manifest)


@dataclass
class Records:
    """`manifest`: None when it is not there or cannot be read; `is_finished`: it is there. Receipts by number."""

    folder: str
    is_finished: bool
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
    listed: list[Receipt] | None = None
    if found.is_finished:
        found.manifest = found.take(read_or_problem(path, lambda: _manifest(store, path)))
        shards = f"{folder}/_shards.parquet"
        listed = found.take(read_or_problem(shards, lambda: read_receipts(store, folder)))
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
    return found


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
    data = store.read_bytes(path)
    RECEIPT.validate_json(data, strict=True)
    return Receipt.from_json(_json(data))


def _manifest(store: Store, path: str) -> Manifest:
    data = store.read_bytes(path)
    MANIFEST.validate_json(data, strict=True)
    return manifest_from_json(_json(data))


def _json(data: bytes) -> Mapping[str, Any]:
    import json

    found: Mapping[str, Any] = json.loads(data)
    return found


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
    }
    for name, value in wanted.items():
        if getattr(manifest, name) != value:
            said = f"{name} is {getattr(manifest, name)}, its receipts say {value}"
            yield Problem(f"{found.folder}/manifest.json", "damaged", said)
