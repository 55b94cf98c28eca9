"""Receipts: one record per finished shard, with what it was made from.

A step's folder `<step>-<key8>/` holds `_step.json` (describes the step, written first), `000042.parquet`,
`_rejects/000042.parquet` (if the shard has rejects), `_receipts/000042.json`, `_log/000042.jsonl`, `artifacts/` and,
once the step is done, `_shards.parquet` (all receipts in one file) and `manifest.json`, written last.
A shard without a valid receipt is treated as missing; a step without a manifest is not done.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.shard import Heavy, Shard, open_parquet
from vlpipe.pipeline.storage.checksummed_json import sealed, unsealed
from vlpipe.pipeline.storage.digests import sha256_json
from vlpipe.pipeline.storage.store import Store

STEP_FOLDER = re.compile(r".+-[0-9a-f]{8}([0-9a-f]{8})?")  # 16 digits if two full keys share the first 8
RECEIPT_FILE = re.compile(r"(\d{6,})\.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """One shard's receipt. run: seconds, host, attempts and `TimedWork.seconds`, for information only.

    columns: statistics per column, see `write_shard`.
    """

    index: int
    shard: Shard
    bytes: int
    rows_in: int
    input_digest: str = ""  # digest of the input shard's file
    input_heavy: Mapping[str, str] = field(
        default_factory=dict
    )  # heavy column it read -> digest of its shard
    artifacts_digest: str = ""
    rejects: Mapping[str, int] = field(default_factory=dict)  # "kind:why" -> rows
    rejects_digest: str = ""  # sha256 of the rejects file
    forgotten: int = 0  # rows that `vlpipe forget` removed from it
    counts: Mapping[str, int] = field(default_factory=dict)  # the stage's own counters
    columns: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    source: str = ""  # hash of the code that made it
    run: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_faults(self) -> int:
        """Rows rejected as faults; filtered rows are excluded."""
        return sum(n for code, n in self.rejects.items() if code.startswith("fault:"))

    @property
    def made_from(self) -> MadeFrom:
        """What the shard was made from, to compare with the function `made_from`."""
        heavy = tuple(sorted(self.input_heavy.items()))
        return self.shard.key, self.input_digest, heavy, self.artifacts_digest

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        value["shard"] = {name: getattr(self.shard, name) for name in self.shard.__slots__}
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Receipt:
        shard = dict(value["shard"])
        shard["heavy"] = tuple(Heavy(*one) for one in shard["heavy"])
        return cls(**{**value, "shard": Shard(**shard)})


# What determines a shard's rows: key, digest of the input shard, (column, digest) of heavy columns, digest of artifacts.
MadeFrom = tuple[str, str, tuple[tuple[str, str], ...], str]


def made_from(key: str, source: Shard, reads_heavy: Iterable[str], artifacts_digest: str) -> MadeFrom:
    """Returns what a shard of this key would be made from, to compare with `Receipt.made_from`. source: its input shard."""
    return key, source.digest, tuple(sorted(source.heavy_digests(reads_heavy).items())), artifacts_digest


def shard_path(folder: str, index: int) -> str:
    return f"{folder}/{index:06d}.parquet"


def receipt_path(folder: str, index: int) -> str:
    return f"{folder}/_receipts/{index:06d}.json"


def log_path(folder: str, index: int) -> str:
    return f"{folder}/_log/{index:06d}.jsonl"


def write_receipt(store: Store, folder: str, receipt: Receipt) -> None:
    record = sealed(receipt.to_json(), one_line_per_key=True)
    store.write_bytes(receipt_path(folder, receipt.index), record, sync_folder=False)


def read_receipt(store: Store, folder: str, index: int) -> Receipt | None:
    """Returns the receipt of a shard; None if there is none. Raises VlpipeError if it is damaged."""
    path = receipt_path(folder, index)
    return parse_receipt(store, path, store.read_bytes(path)) if store.exists(path) else None


def parse_receipt(store: Store, path: str, data: bytes) -> Receipt:
    """Returns a receipt from the bytes of its file. Raises VlpipeError, which names `path`, if they are damaged."""
    try:
        return Receipt.from_json(unsealed(data))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(store, path, error) from error


def damaged(store: Store, path: str, error: BaseException) -> VlpipeError:
    """Returns the error to raise for a damaged record."""
    return VlpipeError(
        f"{store.path(path)} is damaged ({type(error).__name__}: {error}); `vlpipe verify` lists all damage and what to do"
    )


def own_digest(heavy: tuple[Heavy, ...], shard: Shard) -> tuple[Heavy, ...]:
    """Returns `heavy` with the digests of `shard` filled in for columns that `shard` itself stores."""
    own = {"digest": shard.digest, "footer": shard.footer}
    return tuple(one._replace(**own) if one.path == shard.path else one for one in heavy)


def receipt_numbers(store: Store, folder: str) -> list[int]:
    """Returns the sorted numbers of the shards that have a receipt."""
    found = (RECEIPT_FILE.fullmatch(name) for name in store.list(f"{folder}/_receipts"))
    return sorted(int(m[1]) for m in found if m)


def read_unfinished(store: Store, folder: str) -> dict[int, Receipt]:
    """Returns shard number -> receipt, for a step without a manifest."""
    found = (read_receipt(store, folder, index) for index in receipt_numbers(store, folder))
    return {r.index: r for r in found if r is not None}


_HEAVY = pa.list_(pa.struct([(name, pa.string()) for name in Heavy._fields]))
_COUNTS = pa.map_(pa.string(), pa.int64())
_SHARDS = pa.schema(
    [
        ("index", pa.int64()),
        ("path", pa.string()),
        ("num_rows", pa.int64()),
        ("digest", pa.string()),
        ("footer", pa.string()),
        ("key", pa.string()),
        ("heavy", _HEAVY),
        ("bytes", pa.int64()),
        ("rows_in", pa.int64()),
        ("input_digest", pa.string()),
        ("input_heavy", pa.map_(pa.string(), pa.string())),
        ("artifacts_digest", pa.string()),
        ("rejects", _COUNTS),
        ("rejects_digest", pa.string()),
        ("forgotten", pa.int64()),
        ("counts", _COUNTS),
        ("columns", pa.string()),  # JSON: statistics of columns of any type
        ("source", pa.string()),
        ("run", pa.string()),  # JSON
        ("seconds", pa.float64()),  # copied from `run`, so that it can be summed without parsing JSON
    ]
)
_PLAIN = (
    "index",
    "bytes",
    "rows_in",
    "input_digest",
    "artifacts_digest",
    "rejects_digest",
    "forgotten",
    "source",
)
_OF_SHARD = ("path", "num_rows", "digest", "footer", "key")


def write_receipts(store: Store, rel: str, receipts: Sequence[Receipt]) -> None:
    """Writes all receipts of a step into one Parquet file, one row per shard."""
    columns: dict[str, list[Any]] = {name: [getattr(r, name) for r in receipts] for name in _PLAIN}
    columns |= {name: [getattr(r.shard, name) for r in receipts] for name in _OF_SHARD}
    columns["heavy"] = [[one._asdict() for one in r.shard.heavy] for r in receipts]
    for name in ("input_heavy", "rejects", "counts"):
        columns[name] = [sorted(getattr(r, name).items()) for r in receipts]
    for name in ("columns", "run"):
        columns[name] = [json.dumps(getattr(r, name), sort_keys=True) for r in receipts]
    columns["seconds"] = [seconds_in(r) for r in receipts]
    table = pa.table([pa.array(columns[f.name], f.type) for f in _SHARDS], schema=_SHARDS)
    with store.writing(rel) as part:
        pq.write_table(table, part, compression="zstd", write_page_checksum=True)


def receipts_in(store: Store, rel: str) -> list[Receipt]:
    """Returns the receipts in a file written by `write_receipts`. Raises VlpipeError if it is damaged."""
    try:
        with open_parquet(store, rel) as file:
            table = file.read()
        return _receipts(table if table.schema.equals(_SHARDS) else table.cast(_SHARDS))
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(store, rel, error) from error


def _receipts(table: pa.Table) -> list[Receipt]:
    if nulls := [name for name in table.schema.names if table[name].null_count]:
        raise ValueError(f"column {nulls[0]!r} has null values")
    columns = {name: table[name].to_pylist() for name in table.schema.names}
    made: list[Receipt] = []
    for n in range(table.num_rows):
        heavy = tuple(Heavy(**one) for one in columns["heavy"][n])
        maps: dict[str, Any] = {name: dict(columns[name][n]) for name in ("input_heavy", "rejects", "counts")}
        texts = {name: json.loads(columns[name][n]) for name in ("columns", "run")}
        shard = Shard(heavy=heavy, **{name: columns[name][n] for name in _OF_SHARD})
        made.append(Receipt(shard=shard, **maps, **texts, **{name: columns[name][n] for name in _PLAIN}))
    return made


def read_receipts(store: Store, folder: str) -> list[Receipt]:
    """Returns all receipts of a finished step, in shard order, read from one file."""
    return receipts_in(store, f"{folder}/_shards.parquet")


def digest_shards(shards: Iterable[Shard]) -> str:
    """Returns a digest over a step's shards: their keys, file digests and heavy-column digests. Paths are excluded."""
    return sha256_json(
        "shards", [[s.key, s.digest, [[one.column, one.digest] for one in s.heavy]] for s in shards]
    )


def sum_counts(receipts: Iterable[Receipt]) -> dict[str, int]:
    """Returns the stage's own counters, summed over shards."""
    counts: Counter[str] = Counter()
    for receipt in receipts:
        counts.update(receipt.counts)
    return dict(sorted(counts.items()))


def run_path(folder: str) -> str:
    """Returns the path of the file that replaces `Receipt.run` if a gather step has no shard and therefore no receipt."""
    return f"{folder}/_log/run.json"


def seconds_in(receipt: Receipt) -> float:
    """Returns the seconds that a shard took; 0 if unknown."""
    return float(receipt.run.get("seconds", 0))
