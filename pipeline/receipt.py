"""Receipts and manifests: what exists, and from what it was made.

`<step>-<key8>/`: `000042.parquet`, `_rejects/000042.parquet` (when there are any), `_receipts/000042.json`,
`_log/000042.jsonl`; `_shards.parquet` (all receipts in one file), `artifacts/`, and `manifest.json`, written last.
A shard without a valid receipt does not exist; a step without a manifest is not done.
"""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlpipe.pipeline.keys import Keyed, sha256_json, tree_digest
from vlpipe.pipeline.shard import REJECT_SCHEMA, Reject, Shard, ShardWriter, open_parquet
from vlpipe.pipeline.stage import GatherStage
from vlpipe.pipeline.store import Store, sha256_file


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """One shard's receipt. `run` (seconds, host, attempts) is for the reader and no part of the identity."""

    index: int
    shard: Shard
    bytes: int
    rows_in: int
    input_digest: str = ""
    artifacts_digest: str = ""
    rejects: Mapping[str, int] = field(default_factory=dict)  # "kind:why" -> rows
    forgotten: int = 0  # rows that `vlpipe forget` took out of it
    counts: Mapping[str, int] = field(default_factory=dict)  # the stage's own
    columns: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    source: str = ""
    run: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_faults(self) -> int:
        return sum(n for code, n in self.rejects.items() if code.startswith("fault:"))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Receipt:
        shard = dict(value["shard"])
        shard["heavy"] = tuple((name, path) for name, path in shard["heavy"])
        return cls(**{**value, "shard": Shard(**shard)})


def shard_path(folder: str, index: int) -> str:
    return f"{folder}/{index:06d}.parquet"


def receipt_path(folder: str, index: int) -> str:
    return f"{folder}/_receipts/{index:06d}.json"


def rejects_path(folder: str, index: int) -> str:
    return f"{folder}/_rejects/{index:06d}.parquet"


def write_rejects(
    store: Store, folder: str, index: int, step: str, rejects: Iterable[Reject]
) -> dict[str, int]:
    """Write a shard's rejects (no file when there are none); returns "kind:why" -> rows."""
    rows = [{"id": r.id, "stage": step, "kind": r.kind, "why": r.why, "detail": r.detail} for r in rejects]
    path = rejects_path(folder, index)
    if not rows:
        store.remove(path)
        return {}
    with store.writing(path, sync_folder=False) as part, ShardWriter(part, REJECT_SCHEMA) as writer:
        writer.write(pa.Table.from_pylist(rows, REJECT_SCHEMA))
    return dict(sorted(Counter(f"{r['kind']}:{r['why']}" for r in rows).items()))


def read_rejects(store: Store, folder: str, index: int) -> pa.Table:
    if not store.exists(rejects_path(folder, index)):
        return REJECT_SCHEMA.empty_table()
    with open_parquet(store, rejects_path(folder, index)) as file:
        return file.read()


def write_receipt(store: Store, folder: str, receipt: Receipt) -> None:
    store.write_json(receipt_path(folder, receipt.index), receipt.to_json(), sync_folder=False)


def read_receipt(store: Store, folder: str, index: int) -> Receipt | None:
    path = receipt_path(folder, index)
    return Receipt.from_json(store.read_json(path)) if store.exists(path) else None


def run_path(folder: str) -> str:
    """What `Receipt.run` says, of a gather step that has no shard and so no receipt."""
    return f"{folder}/_log/run.json"


def seconds_of(store: Store, folder: str, receipts: Iterable[Receipt]) -> float:
    """Seconds a step took, summed over its shards whatever ran at once; 0 when nothing says."""
    runs = [r.run for r in receipts]
    if not runs and store.exists(run_path(folder)):
        runs = [store.read_json(run_path(folder))]
    return sum(float(run.get("seconds", 0)) for run in runs)


_SHARDS = pa.schema([("index", pa.int64()), ("key", pa.string()), ("receipt", pa.string())])


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """A finished step. `inputs_digest`: every shard and artifact it read; `artifacts`: relative path -> sha256."""

    step: str
    use: str
    step_key: str
    stage_key: str
    inputs_digest: str
    inputs: tuple[str, ...]  # folders
    params: Mapping[str, Any]
    files: Mapping[str, str]
    source: str
    schema: tuple[str, ...]
    num_shards: int
    rows_in: int
    rows_out: int
    rejects: Mapping[str, int]
    artifacts: Mapping[str, str]
    versions: Mapping[str, str]
    forgotten: int = 0  # rows it was made from that were forgotten since; its artifacts know them still
    counts: Mapping[str, int] = field(default_factory=dict)
    copies: bool = False  # `Stage.COPIES`

    def artifact_digest(self, path: str) -> str | None:
        """Digest of one artifact file, or of a folder of them; None when there is none of that name."""
        path = path.strip("/")
        if path in self.artifacts:
            return self.artifacts[path]
        under = {name: d for name, d in self.artifacts.items() if not path or name.startswith(path + "/")}
        return tree_digest(under) if under else None


def write_manifest(store: Store, folder: str, manifest: Manifest, receipts: list[Receipt]) -> None:
    store.sync(folder, f"{folder}/_receipts", f"{folder}/_rejects")
    write_receipts(store, f"{folder}/_shards.parquet", receipts)
    store.write_json(f"{folder}/manifest.json", asdict(manifest))


def write_receipts(store: Store, rel: str, receipts: Sequence[Receipt]) -> None:
    """All of a step in one file."""
    texts = [json.dumps(r.to_json(), sort_keys=True) for r in receipts]
    index = pa.py_buffer(np.array([r.index for r in receipts], np.int64))
    columns = [
        pa.Array.from_buffers(pa.int64(), len(receipts), [None, index]),
        _strings([r.shard.key for r in receipts]),
        _strings(texts),
    ]
    table = pa.Table.from_arrays(columns, schema=_SHARDS)
    with store.writing(rel) as part:
        pq.write_table(table, part, compression="zstd")


def _strings(values: list[str]) -> pa.Array:
    """From buffers: of a list `pa.array` makes the same, but imports pandas (0.2 s), which a driver has no other use for."""
    data = [value.encode() for value in values]
    offsets = pa.py_buffer(np.cumsum([0, *map(len, data)], dtype=np.int64))
    return pa.LargeStringArray.from_buffers(len(data), offsets, pa.py_buffer(b"".join(data))).cast(
        pa.string()
    )


def read_manifest(store: Store, folder: str) -> Manifest | None:
    path = f"{folder}/manifest.json"
    if not store.exists(path):
        return None
    return manifest_from_json(store.read_json(path))


def manifest_from_json(value: Mapping[str, Any]) -> Manifest:
    return Manifest(**{**value, "inputs": tuple(value["inputs"]), "schema": tuple(value["schema"])})


def read_receipts(store: Store, folder: str) -> list[Receipt]:
    """All receipts of a finished step, from one object."""
    return receipts_in(store, f"{folder}/_shards.parquet")


def receipts_in(store: Store, rel: str) -> list[Receipt]:
    """What `write_receipts` wrote."""
    with open_parquet(store, rel) as file:
        return [Receipt.from_json(json.loads(text)) for text in file.read(["receipt"])["receipt"].to_pylist()]


def make_manifest(
    keyed: Keyed,
    schema: pa.Schema,
    inputs: tuple[str, ...],
    inputs_digest: str,
    receipts: list[Receipt],
    artifacts: Mapping[str, str],
) -> Manifest:
    rejects: Counter[str] = Counter()
    for receipt in receipts:
        rejects.update(receipt.rejects)
    return Manifest(
        step=keyed.step.name,
        use=keyed.step.use,
        step_key=keyed.step_key,
        stage_key=keyed.stage_key,
        inputs_digest=inputs_digest,
        inputs=inputs,
        params=keyed.step.params,
        files=dict(keyed.files),
        source=keyed.source,
        schema=tuple(f"{f.name}: {f.type}" for f in schema),
        num_shards=len(receipts),
        rows_in=sum(r.rows_in for r in receipts),
        rows_out=sum(r.shard.num_rows for r in receipts),
        rejects=dict(sorted(rejects.items())),
        artifacts=dict(sorted(artifacts.items())),
        versions={"python": platform.python_version()}
        | {name: installed(name) for name in ("vlpipe", "pyarrow", "torch", "ray")},
        counts=sum_counts(receipts),
        copies=isinstance(keyed.step.stage, GatherStage) and keyed.step.stage.COPIES,
    )


def sum_counts(receipts: Iterable[Receipt]) -> dict[str, int]:
    """The stage's own counts over shards."""
    counts: Counter[str] = Counter()
    for receipt in receipts:
        counts.update(receipt.counts)
    return dict(sorted(counts.items()))


def installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def digest_inputs(shards: Iterable[Shard], artifacts_digest: str) -> str:
    return sha256_json([[s.key, s.digest] for s in shards], artifacts_digest)


def hash_folder(folder: str) -> dict[str, str]:
    """Relative path -> sha256 of every file below a local folder."""
    import os

    found: dict[str, str] = {}
    for sub, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(sub, name)
            found[os.path.relpath(path, folder)] = sha256_file(path)
    return dict(sorted(found.items()))
