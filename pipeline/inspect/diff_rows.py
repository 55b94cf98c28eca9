"""`diff` of rows: shard k of A is compared with shard k of B, rows matched by id. Unmatched rows are kept as 24 bytes each.

Ids are compared as multisets: the n-th row of an id in A matches the n-th row of that id in B. Heavy columns are equal if
the digests of their files are equal; otherwise each value is read and compared by its sha256.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vlpipe.pipeline.engine.records.receipts import Receipt
from vlpipe.pipeline.inspect.on_disk import StepRecord
from vlpipe.pipeline.inspect.why import changes
from vlpipe.pipeline.shard import is_heavy, open_parquet, read_batches
from vlpipe.pipeline.storage.printable import cell
from vlpipe.pipeline.storage.store import Store

HASH_BYTES = 16  # the probability that any two of 10^9 ids collide is about 10^-21
HEAVY = ", heavy"


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a comparison: a step's folder in its root."""

    store: Store
    record: StepRecord

    @property
    def receipts(self) -> list[Receipt]:
        return self.record.receipts


@dataclass(kw_only=True)
class RowDiff:
    """Differences between the rows of A and B. Examples are ids, or row numbers for rows without an id.

    light, heavy: compared columns; by_value: heavy column -> number of shard pairs whose values were read.
    """

    num_rows: tuple[int, int]
    num_both: int = 0
    only_a: list[str] = field(default_factory=list)
    only_b: list[str] = field(default_factory=list)
    num_only_a: int = 0
    num_only_b: int = 0
    num_changed: int = 0
    is_moved: bool = False  # a row has another position, or is in another shard
    light: list[str] = field(default_factory=list)
    heavy: list[str] = field(default_factory=list)
    by_value: Counter[str] = field(default_factory=Counter)
    columns: Counter[str] = field(default_factory=Counter)  # column -> rows that differ in it
    examples: list[tuple[str, list[str]]] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        return self.num_rows[0] == self.num_rows[1] and not (
            self.num_only_a or self.num_only_b or self.num_changed
        )


def column_types(side: Side) -> dict[str, str]:
    """Returns column -> type of a step's rows, also of heavy columns in other files. Empty if there is no shard."""
    if not side.receipts:
        return {}
    shard = side.receipts[0].shard
    with open_parquet(side.store, shard.path) as file:
        own = file.schema_arrow
    types = {f.name: f"{f.type}{HEAVY if is_heavy(f) else ''}" for f in own}
    for name, path, *_ in shard.heavy:
        if name not in types:
            with open_parquet(side.store, path) as file:
                types[name] = f"{file.schema_arrow.field(name).type}{HEAVY}"
    return types


def compare_rows(a: Side, b: Side, num_examples: int = 5) -> RowDiff:
    """Returns the differences in columns that both sides have with the same type. Rows match by `id`, else by position."""
    found = RowDiff(num_rows=(a.record.num_rows, b.record.num_rows))
    types = [column_types(side) for side in (a, b)]
    both = [name for name, dtype in types[0].items() if types[1].get(name) == dtype]
    found.heavy = [name for name in both if types[0][name].endswith(HEAVY)]
    found.light = [name for name in both if name not in found.heavy]
    comparing = _Comparing(a, b, found, num_examples)
    if "id" in found.light:
        comparing.by_id()
    elif both:
        comparing.by_position()
    else:
        found.num_only_a, found.num_only_b = found.num_rows
    return found


class _Waiting:
    """Rows of one side that are not matched yet: id hash (16 bytes), shard index and row index (int32 each)."""

    def __init__(self) -> None:
        self._hashes: list[npt.NDArray[np.bytes_]] = []
        self._places: list[npt.NDArray[np.int32]] = []  # (num_rows, 2)

    def add(self, ids: Sequence[Any], rows: Sequence[int], shard: int) -> None:
        if rows:
            self._hashes.append(np.array([_hash(ids[row]) for row in rows], f"S{HASH_BYTES}"))
            self._places.append(np.stack([np.full(len(rows), shard, np.int32), np.array(rows, np.int32)], 1))

    def sorted(self) -> tuple[npt.NDArray[np.bytes_], npt.NDArray[np.int32]]:
        """Returns sorted distinct hashes, (num_rows,), and (shard, row) of each, (num_rows, 2).

        The n-th row of a repeated id gets its own hash.
        """
        if not self._hashes:
            return np.array([], f"S{HASH_BYTES}"), np.empty((0, 2), np.int32)
        hashes, places = np.concatenate(self._hashes), np.concatenate(self._places)
        order = np.argsort(hashes, kind="stable")
        hashes, places = hashes[order], places[order]
        at = np.arange(len(hashes))
        is_first = np.concatenate([[True], hashes[1:] != hashes[:-1]])
        nth = at - np.maximum.accumulate(np.where(is_first, at, 0))
        repeated = np.flatnonzero(nth)
        if len(repeated):
            hashes[repeated] = [_hash((bytes(hashes[row]), int(nth[row]))) for row in repeated]
            order = np.argsort(hashes, kind="stable")
            hashes, places = hashes[order], places[order]
        return hashes, places


def _hash(id_: Any) -> bytes:
    return hashlib.blake2b(repr(id_).encode("utf-8", "surrogatepass"), digest_size=HASH_BYTES).digest()


@dataclass
class _Comparing:
    a: Side
    b: Side
    found: RowDiff
    num_examples: int

    def by_id(self) -> None:
        waiting = _Waiting(), _Waiting()
        for k in range(max(len(self.a.receipts), len(self.b.receipts))):
            pair = [side.receipts[k] if k < len(side.receipts) else None for side in (self.a, self.b)]
            light, heavy = self._to_read(*pair)
            if light or heavy:
                self._match(pair, light or ["id"], heavy, k, waiting)
            elif pair[0]:
                self.found.num_both += pair[0].shard.num_rows
        self._moved_rows(*waiting)

    def _to_read(self, a: Receipt | None, b: Receipt | None) -> tuple[list[str], list[str]]:
        """Returns the (light, heavy) columns that may differ according to the digests of two shards.

        If a side has no such shard (None), only `id`, by which the rows are looked up in the other shards.
        """
        if a is None or b is None:
            return ["id"], []
        light = [] if a.shard.digest == b.shard.digest else self.found.light
        return light, [name for name in self.found.heavy if _heavy_digest(a, name) != _heavy_digest(b, name)]

    def _match(
        self,
        pair: Sequence[Receipt | None],
        light: list[str],
        heavy: list[str],
        k: int,
        waiting: tuple[_Waiting, _Waiting],
    ) -> None:
        tables = [_read(s, r, light, heavy) for s, r in zip((self.a, self.b), pair, strict=True)]
        self.found.by_value.update(heavy)
        ids = [table["id"].to_pylist() for table in tables]
        place = {key: row for row, key in enumerate(_numbered(ids[1]))}
        partners = [place.pop(key, -1) for key in _numbered(ids[0])]
        rows_a = [row for row, partner in enumerate(partners) if partner >= 0]
        rows_b = [partner for partner in partners if partner >= 0]
        self.found.is_moved |= rows_b != sorted(rows_b)
        self._differences(tables[0].take(_rows(rows_a)), tables[1].take(_rows(rows_b)), [*light, *heavy])
        waiting[0].add(ids[0], [row for row, partner in enumerate(partners) if partner < 0], k)
        waiting[1].add(ids[1], sorted(place.values()), k)

    def _moved_rows(self, waiting_a: _Waiting, waiting_b: _Waiting) -> None:
        """Compares rows that are in different shards on the two sides. Each pair of shards is read once."""
        hashes_a, places_a = waiting_a.sorted()
        hashes_b, places_b = waiting_b.sorted()
        _, in_a, in_b = np.intersect1d(hashes_a, hashes_b, assume_unique=True, return_indices=True)
        pairs = np.concatenate([places_a[in_a], places_b[in_b]], 1)  # (num_rows, 4): shard, row, shard, row
        pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 2], pairs[:, 0]))]
        self.found.is_moved |= bool(len(pairs))
        cuts = np.flatnonzero(np.any(pairs[1:, [0, 2]] != pairs[:-1, [0, 2]], axis=1)) + 1
        for part in np.split(pairs, cuts) if len(pairs) else ():
            self._moved_pair(part)
        self._only_one_side("a", self.a, np.delete(places_a, in_a, axis=0))
        self._only_one_side("b", self.b, np.delete(places_b, in_b, axis=0))

    def _moved_pair(self, part: npt.NDArray[np.int32]) -> None:
        a, b = self.a.receipts[part[0, 0]], self.b.receipts[part[0, 2]]
        heavy = [name for name in self.found.heavy if _heavy_digest(a, name) != _heavy_digest(b, name)]
        left = _read(self.a, a, self.found.light, heavy).take(_rows(part[:, 1].tolist()))
        right = _read(self.b, b, self.found.light, heavy).take(_rows(part[:, 3].tolist()))
        self.found.by_value.update(heavy)
        self._differences(left, right, [*self.found.light, *heavy])

    def _only_one_side(self, name: str, side: Side, places: npt.NDArray[np.int32]) -> None:
        """Stores the number of rows that only this side has, and the ids of the first ones.

        name: "a" or "b"; places: (shard, row) of each of these rows, (num_rows, 2).
        """
        first = places[np.lexsort((places[:, 1], places[:, 0]))][: self.num_examples].tolist()
        ids = []
        for shard in dict.fromkeys(shard for shard, _ in first):
            known = _read(side, side.receipts[shard], ["id"], [])["id"]
            ids += [cell(known[row].as_py()) for number, row in first if number == shard]
        setattr(self.found, f"num_only_{name}", len(places))
        setattr(self.found, f"only_{name}", ids)

    def by_position(self) -> None:
        """Compares rows without an id (results, losses) by position."""
        columns = [*self.found.light, *self.found.heavy]
        streams = [_all(side, self.found.light, self.found.heavy) for side in (self.a, self.b)]
        have = [next(stream, None) for stream in streams]
        while have[0] is not None and have[1] is not None:
            num = min(table.num_rows for table in have if table is not None)
            self._differences(have[0].slice(0, num), have[1].slice(0, num), columns)
            for at in (0, 1):
                rest = have[at].slice(num)  # type: ignore[union-attr]  # neither is None
                have[at] = rest if rest.num_rows else next(streams[at], None)
        self.found.by_value.update(self.found.heavy)
        self.found.num_only_a, self.found.num_only_b = (
            num - self.found.num_both for num in self.found.num_rows
        )

    def _differences(self, a: pa.Table, b: pa.Table, columns: Sequence[str]) -> None:
        """Counts the rows and columns in which two aligned tables differ. NaN equals NaN."""
        changed: dict[int, list[str]] = {}
        for name in columns:
            if name == "id" or a[name].combine_chunks().equals(b[name].combine_chunks()):
                continue
            beside = zip(a[name].to_pylist(), b[name].to_pylist(), strict=True)
            rows = [n for n, (x, y) in enumerate(beside) if x != y and repr(x) != repr(y)]
            if rows:
                self.found.columns[name] += len(rows)
            for n in rows:
                changed.setdefault(n, []).append(name)
        for n in sorted(changed)[: self.num_examples - len(self.found.examples)]:
            rows_ab = [t.select(changed[n]).slice(n, 1).to_pylist()[0] for t in (a, b)]
            self.found.examples.append((_label(a, n, self.found.num_both), changes(*rows_ab)))
        self.found.num_changed += len(changed)
        self.found.num_both += a.num_rows


def _rows(rows: Sequence[int]) -> pa.Array:
    return pa.array(rows, pa.int64())


def _numbered(ids: Sequence[Any]) -> Iterator[tuple[Any, int]]:
    """Yields for each id (id, number of its earlier occurrences in `ids`)."""
    seen: Counter[Any] = Counter()
    for id_ in ids:
        yield id_, seen[id_]
        seen[id_] += 1


def _heavy_digest(receipt: Receipt, name: str) -> str:
    """Returns the sha256 of the file that holds a heavy column: another step's shard, or the shard itself."""
    return {one.column: one.digest for one in receipt.shard.heavy}.get(name, receipt.shard.digest)


def _label(table: pa.Table, n: int, before: int) -> str:
    """Returns the id of row `n` of a table; without ids, its number from 0 and its texts: `row 3 (tr@1)`.

    before: rows of the step before this table.
    """
    if "id" in table.schema.names:
        return cell(table["id"][n].as_py())
    texts = [table[f.name][n].as_py() for f in table.schema if pa.types.is_string(f.type)]
    return f"row {before + n}" + (f" ({', '.join(cell(t) for t in texts)})" if texts else "")


def _read(side: Side, receipt: Receipt | None, light: Sequence[str], heavy: Sequence[str]) -> pa.Table:
    """Returns `id` and the given columns of a shard; no rows for None. A heavy value becomes `1,024 bytes, sha256 0f...`."""
    names = list(dict.fromkeys(["id", *light]))
    empty = pa.table({name: pa.array([], pa.string()) for name in (*names, *heavy)})
    tables = [] if receipt is None else [*_batches(side, receipt, names, heavy)]
    return pa.concat_tables(tables) if tables else empty


def _batches(side: Side, receipt: Receipt, light: Sequence[str], heavy: Sequence[str]) -> Iterator[pa.Table]:
    for batch in read_batches(side.store, receipt.shard, light, heavy):
        for name in heavy:
            texts = pa.array([_digest_text(value) for value in batch[name]], pa.string())
            batch = batch.set_column(batch.schema.get_field_index(name), name, texts)
        yield batch.replace_schema_metadata(None)


def _digest_text(value: pa.Scalar) -> str | None:
    if not value.is_valid:
        return None
    if isinstance(value, (pa.BinaryScalar, pa.LargeBinaryScalar)):
        data = value.as_buffer()
        return f"{data.size:,} bytes, sha256 {hashlib.sha256(data).hexdigest()[:32]}"
    found = value.as_py()
    return f"sha256 {hashlib.sha256(repr(found).encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"


def _all(side: Side, light: Sequence[str], heavy: Sequence[str]) -> Iterator[pa.Table]:
    for receipt in side.receipts:
        yield from (batch for batch in _batches(side, receipt, light, heavy) if batch.num_rows)
