"""`verify`: read everything again and compare it with what its receipt says."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.receipt import (
    Receipt,
    read_receipt,
    read_rejects,
    receipt_numbers,
    receipt_path,
    rejects_path,
    shard_path,
)
from vlpipe.pipeline.records import SHARD_FILE, StepRecord, read_step
from vlpipe.pipeline.store import Store


@dataclass(frozen=True, slots=True)
class Problem:
    """`left over` is harmless: no receipt speaks of it, so no step reads it."""

    path: str
    kind: Literal["missing", "damaged", "left over"]
    text: str = ""

    @property
    def is_wrong(self) -> bool:
        return self.kind != "left over"


@dataclass(frozen=True, slots=True)
class Verified:
    folder: str
    num_shards: int
    num_artifacts: int
    problems: list[Problem]


def verify_step(store: Store, folder: str, seen: Callable[[], None] = lambda: None) -> Verified:
    """Re-hash every shard and artifact of a step; `seen` is called after each."""
    broken = list(broken_records(store, folder))
    if broken:
        return Verified(folder, 0, 0, broken)
    record = read_step(store, folder)
    problems: list[Problem] = []
    for receipt in record.receipts:
        problems += shard_problems(store, folder, receipt)
        problems += _heavy_problems(store, receipt)
        seen()
    artifacts = record.manifest.artifacts if record.manifest else {}
    for name, digest in artifacts.items():
        problems += _file_problems(store, f"{folder}/artifacts/{name}", digest)
        seen()
    return Verified(folder, len(record.receipts), len(artifacts), [*problems, *left_over(store, record)])


def verify_shard(store: Store, folder: str, index: int) -> Verified:
    receipt = next((r for r in read_step(store, folder).receipts if r.index == index), None)
    if receipt is None:
        problem = Problem(shard_path(folder, index), "left over", "there is no receipt for it")
        return Verified(folder, 0, 0, [problem])
    return Verified(folder, 1, 0, [*shard_problems(store, folder, receipt), *_heavy_problems(store, receipt)])


def broken_records(store: Store, folder: str) -> Iterator[Problem]:
    """Receipts and manifest that cannot be read or do not fit each other."""
    try:
        record = read_step(store, folder)
    except VlpipeError as error:
        found = [p for p in _record_files(store, folder) if not _is_json(store, p)]
        for path in found or [f"{folder}/_shards.parquet"]:
            yield Problem(path, "damaged", str(error) if not found else "it is no JSON")
        return
    for receipt in record.receipts if record.manifest else ():
        path = receipt_path(folder, receipt.index)
        if not store.exists(path):
            yield Problem(path, "missing", "the manifest has this shard")
        elif not _is_json(store, path) or read_receipt(store, folder, receipt.index) != receipt:
            yield Problem(path, "damaged", "it is not what _shards.parquet has")


def _record_files(store: Store, folder: str) -> list[str]:
    manifest = f"{folder}/manifest.json"
    receipts = [receipt_path(folder, index) for index in receipt_numbers(store, folder)]
    return [manifest, *receipts] if store.exists(manifest) else receipts


def _is_json(store: Store, path: str) -> bool:
    try:
        store.read_json(path)
    except (json.JSONDecodeError, UnicodeDecodeError):
        return False
    return True


def shard_problems(store: Store, folder: str, receipt: Receipt) -> list[Problem]:
    """A shard against its receipt: the bytes of its rows, and its rejects by code (they have no digest)."""
    return [
        *_file_problems(store, receipt.shard.path, receipt.shard.digest),
        *_reject_problems(store, folder, receipt),
    ]


def _file_problems(store: Store, path: str, digest: str) -> Iterator[Problem]:
    if not store.exists(path):
        yield Problem(path, "missing")
        return
    with store.open(path) as file:
        found = hashlib.file_digest(cast(Any, file), "sha256").hexdigest()
    if found != digest:
        yield Problem(path, "damaged", f"sha256 is {found[:16]}..., the receipt says {digest[:16]}...")


def _reject_problems(store: Store, folder: str, receipt: Receipt) -> Iterator[Problem]:
    path = rejects_path(folder, receipt.index)
    if receipt.rejects and not store.exists(path):
        yield Problem(path, "missing", f"the receipt counts {sum(receipt.rejects.values())} rejects")
        return
    try:
        rows = read_rejects(store, folder, receipt.index).to_pylist()
    except (VlpipeError, OSError) as error:
        yield Problem(path, "damaged", str(error))
        return
    if Counter(f"{r['kind']}:{r['why']}" for r in rows) != Counter(receipt.rejects):
        yield Problem(
            path, "damaged", f"it has {len(rows)} rejects, the receipt {sum(receipt.rejects.values())}"
        )


def _heavy_problems(store: Store, receipt: Receipt) -> Iterator[Problem]:
    for name, path, _ in receipt.shard.heavy:
        if path != receipt.shard.path and not store.exists(path):
            yield Problem(path, "missing", f"it holds {name} of {receipt.shard.path}")


def left_over(store: Store, record: StepRecord) -> Iterator[Problem]:
    """Files a killed run left, and shards and rejects without a receipt."""
    folder, known = record.folder, {r.index for r in record.receipts}
    rejected = {r.index for r in record.receipts if r.rejects}
    for sub, expected in (("", known), ("/_rejects", rejected), ("/_receipts", known), ("/_log", known)):
        for name in store.list(folder + sub):
            path = f"{folder}{sub}/{name}"
            number = SHARD_FILE.fullmatch(name)
            if re.search(r"\.part$", name):
                yield Problem(path, "left over", "of a write that did not end")
            elif number and int(number[1]) not in expected:
                yield Problem(path, "left over", "there is no receipt for it")
    if record.manifest is not None and store.exists(f"{folder}/artifacts"):
        for path in sorted(store.fs.find(store.path(f"{folder}/artifacts"))):
            name = str(path).partition(f"{folder}/artifacts/")[2]
            if name not in record.manifest.artifacts:
                yield Problem(f"{folder}/artifacts/{name}", "left over", "the manifest does not have it")


ADVICE = (
    "What is missing or damaged is made again by `vlpipe run` once the step's manifest.json and the receipts of the "
    "shards named (`_receipts/NUMBER.json`) are removed."
)
