"""Reads row groups into memory: ids, images and usable texts (neither dropped by a filter nor blank) of their rows.

A row group is read as one unit. If its shard has no images, they are joined by id from the shard that stores them.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vlpipe.pipeline.errors import RowFault, VlpipeError
from vlpipe.pipeline.parquet.row_digest import check_all
from vlpipe.pipeline.shard import Heavy, Shard, open_shard
from vlpipe.pipeline.stage import Dataset
from vlpipe.pipeline.storage.store import Store
from vlpipe.stages.common.pixels import Box, decode_part, resized_part

if TYPE_CHECKING:
    from PIL.Image import Image

SMALL_PIXELS = 128 * 128  # images up to this size stay decoded in memory, at most 64 KB each


@dataclass(slots=True)
class Row:
    """A row of training data: its usable texts, and the columns that the makers of the recipe read.

    The value of `image` is the encoded file, or after the first use the decoded image if it is small.
    """

    id: str
    image_id: int  # equal for exact duplicates
    texts: list[str]
    columns: dict[str, Any]

    def rgb(self, part: Callable[[int, int], Box], size: int) -> Image:
        """Returns a part of the image, resized to (size, size), in RGB. part: maps (width, height) to the box to cut out.

        A large JPEG is decoded at a smaller scale if that leaves the part no smaller than `size`. Raises VlpipeError if the
        image cannot be decoded.
        """
        encoded = self.columns["image"]
        if not isinstance(encoded, bytes):
            return resized_part(encoded, part(encoded.width, encoded.height), size)
        try:
            found, whole = decode_part(encoded, part, size, keep_whole=SMALL_PIXELS)
        except RowFault as fault:
            raise VlpipeError(
                f"training: the image of row {self.id} cannot be decoded ({fault}); "
                "add a step before training that rejects such rows"
            ) from fault
        if whole is not None:
            self.columns["image"] = whole
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles values of nested types as Arrow arrays: as scalars they would become Python objects one by one."""
        columns = {name: _packed(value) for name, value in self.columns.items()}
        return _unpacked, (self.id, self.image_id, self.texts, columns)

    @property
    def image_bytes(self) -> int:
        image = self.columns.get("image", b"")
        return len(image) if isinstance(image, bytes) else 4 * image.width * image.height


def _packed(value: Any) -> Any:
    is_list = isinstance(value, pa.ListScalar) and pa.types.is_list(value.type) and value.values is not None
    return pa.concat_arrays([value.values]) if is_list else value


def _unpacked(id_: str, image_id: int, texts: list[str], columns: dict[str, Any]) -> Row:
    def value(packed: Any) -> Any:
        is_array = isinstance(packed, pa.Array)
        return pa.ListArray.from_arrays([0, len(packed)], packed)[0] if is_array else packed

    return Row(id_, image_id, texts, {name: value(packed) for name, packed in columns.items()})


class Rows(list[Row]):
    """The rows of a row group that have samples. other_bytes: size of their columns apart from `image`."""

    def __init__(self, rows: Iterable[Row], other_bytes: int = 0) -> None:
        super().__init__(rows)
        self.other_bytes = other_bytes
        self._ends = list(accumulate(len(row.texts) for row in self))

    def pair(self, index: int) -> tuple[Row, str]:
        """Returns pair number `index` of all (image, text) pairs of the row group."""
        row = bisect_right(self._ends, index)
        return self[row], self[row].texts[
            index - self._ends[row]
        ]  # the index is negative: it counts from the row's last text

    @property
    def num_bytes(self) -> int:
        return self.other_bytes + sum(row.image_bytes for row in self)


@dataclass(frozen=True, slots=True)
class Unit:
    """Row group number `group` of a shard; it is read as a whole. copies: column with how often each text occurs, or ""."""

    store: Store
    shard: Shard
    group: int
    has_sha256: bool
    copies: str = ""


def usable(texts: pa.ChunkedArray, copies: pa.ChunkedArray | None = None) -> list[list[str]]:
    """Returns the usable texts of each row: neither dropped by a filter nor blank.

    copies: (N,), for each text how often it is repeated, 0 for not at all, null for once; None: each once.
    """
    rows: list[list[str]] = [[] for _ in range(len(texts))]
    flat, good = _flat_usable(texts)
    parents = pc.list_parent_indices(texts.combine_chunks()).filter(good).to_pylist()
    values = pc.struct_field(flat, "text").filter(good).to_pylist()
    times = [1] * len(values) if copies is None else _copies(texts, copies)[_as_mask(good)].tolist()
    for row, value, num in zip(parents, values, times, strict=True):
        rows[row] += [value] * num
    return rows


def _as_mask(good: pa.BooleanArray) -> npt.NDArray[np.bool_]:
    return np.asarray(good.to_numpy(zero_copy_only=False), np.bool_)


def _copies(texts: pa.ChunkedArray, copies: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Returns how often each text occurs, (M,). Raises VlpipeError unless each row has a number, or null, per text."""
    lengths = [pc.fill_null(pc.list_value_length(lists.combine_chunks()), 0) for lists in (texts, copies)]
    if not lengths[0].equals(lengths[1]):
        raise VlpipeError(
            "training: the column `copies` has not one value per text; compute it after the last step that adds texts"
        )
    found = pc.fill_null(pc.cast(pc.list_flatten(copies.combine_chunks()), pa.int64()), 1)
    return np.maximum(np.asarray(found.to_numpy(zero_copy_only=False), np.int64), 0)


Per = Literal[
    "pairs", "images", "rows"
]  # what a sample is: an (image, text) pair, a row with one of its texts, a row


def count_usable(
    texts: pa.ChunkedArray, per: Literal["pairs", "images"], copies: pa.ChunkedArray | None = None
) -> int:
    """Returns the number of samples in these rows: usable texts ("pairs"), or rows with at least one ("images").

    copies: as in `usable`.
    """
    _, good = _flat_usable(texts)
    if copies is not None:
        times = np.where(_as_mask(good), _copies(texts, copies), 0)
        if per == "pairs":
            return int(times.sum())
        good = pa.array(times > 0)
    if per == "pairs":
        return int(pc.sum(good).as_py() or 0)
    return len(pc.list_parent_indices(texts.combine_chunks()).filter(good).unique())


def _flat_usable(texts: pa.ChunkedArray) -> tuple[pa.StructArray, pa.BooleanArray]:
    flat = pc.list_flatten(texts.combine_chunks())
    not_dropped = pc.fill_null(pc.struct_field(flat, "kept"), True)
    not_blank = pc.not_equal(pc.utf8_trim_whitespace(pc.struct_field(flat, "text")), "")
    return flat, pc.and_(not_dropped, pc.fill_null(not_blank, False))


@dataclass(frozen=True, slots=True)
class Scan:
    """The row groups of a step's output: counts of their samples, and (rows with samples, bytes of the columns) of each."""

    units: list[Unit]
    counts: list[int]
    sizes: list[tuple[int, int]]


def scan(dataset: Dataset, per: Per, columns: Sequence[str] = (), copies: str = "") -> Scan:
    """Returns all row groups of a step's output. Reads only the texts and `copies`, or no column.

    columns: those that will be read of each row; their bytes are as Parquet states them, uncompressed. Of a column in
    another shard, a row has its mean. copies: the column with how often each text occurs; "", or one that this step's output
    does not have: each once. Raises VlpipeError for one of `columns` that the step's output does not have.
    """
    if lacking := [name for name in columns if name not in dataset.schema.names]:
        raise VlpipeError(
            f"training: step {dataset.name!r} has no column {', '.join(lacking)}, which a stream is made from"
        )
    found = Scan([], [], [])
    copies = copies if copies in dataset.schema.names else ""
    has_sha256 = "sha256" in dataset.schema.names
    for shard in dataset.shards:
        holders = {name: shard.holder(name) for name in columns}
        joined = [name for name, holder in holders.items() if holder.path != shard.path]
        per_row = sum(_mean_bytes(dataset.store, holders[name], name) for name in joined)
        with open_shard(dataset.store, shard) as file:
            for group in range(file.num_row_groups):
                about = file.metadata.row_group(group)
                found.units.append(Unit(dataset.store, shard, group, has_sha256, copies))
                count = rows = about.num_rows
                if per != "rows":
                    table = file.read_row_group(group, columns=["texts", *([copies] if copies else [])])
                    both = table["texts"], table[copies] if copies else None
                    count, rows = (count_usable(both[0], kind, both[1]) for kind in (per, "images"))
                found.counts.append(count)
                own = _column_bytes(about, set(holders) - set(joined)) * rows / max(1, about.num_rows)
                found.sizes.append((rows, int(own + per_row * rows)))
    return found


def _column_bytes(group: Any, names: Collection[str]) -> int:
    """Returns the uncompressed bytes of columns, parts of nested ones included. group: a row group's metadata."""
    chunks = (group.column(i) for i in range(group.num_columns))
    return sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.partition(".")[0] in names)


@lru_cache(maxsize=4096)
def _mean_bytes(store: Store, holder: Shard | Heavy, name: str) -> float:
    with open_shard(store, holder) as file:
        about = file.metadata
        total = sum(_column_bytes(about.row_group(g), {name}) for g in range(file.num_row_groups))
        return total / max(1, about.num_rows)


def read_unit(unit: Unit, columns: Sequence[str] = ("image",), with_texts: bool = True) -> Rows:
    """Returns the rows of a row group with the columns that the makers read, heavy ones included.

    with_texts: only rows with a usable text. Raises VlpipeError if a heavy value is missing, or an image does not match the
    row's sha256.
    """
    holders = {name: unit.shard.holder(name) for name in columns}
    joined = [name for name, holder in holders.items() if holder.path != unit.shard.path]
    own = ["id", *(["texts"] if with_texts else []), *(["sha256"] if unit.has_sha256 else [])]
    own += [unit.copies] if unit.copies and with_texts else []
    with open_shard(unit.store, unit.shard) as file:
        table = file.read_row_group(
            unit.group, columns=list(dict.fromkeys([*own, *(n for n in columns if n not in joined)]))
        )
    copies = table[unit.copies] if unit.copies else None
    texts = usable(table["texts"], copies) if with_texts else [[] for _ in range(len(table))]
    rows = [k for k, found in enumerate(texts) if found or not with_texts]
    ids = table["id"].take(rows).to_pylist()
    values: dict[str, list[Any]] = {}
    other_bytes = 0
    for name, holder in holders.items():
        values[name] = (
            joined_values(unit.store, holder, name, ids)
            if name in joined
            else _values(table[name].take(rows))
        )
        if name != "image":
            other_bytes += sum(map(_num_bytes, values[name]))
    same = table["sha256"].take(rows).to_pylist() if unit.has_sha256 else [None] * len(rows)
    if "image" in values:
        check_all(ids, values["image"], same, f"training, {holders['image'].path}")
    found = (
        Row(id_, int64_id(sha256 or id_), texts[k], {name: values[name][at] for name in columns})
        for at, (k, id_, sha256) in enumerate(zip(rows, ids, same, strict=True))
    )
    return Rows(found, other_bytes)


def _values(column: pa.ChunkedArray) -> list[Any]:
    """Returns the values of a column: Python objects of plain types, arrow scalars of nested ones."""
    return list(column) if pa.types.is_nested(column.type) else column.to_pylist()


def _num_bytes(value: Any) -> int:
    """Returns the size of a value of a column; of plain Python objects other than bytes and texts, which are small, 0."""
    if isinstance(value, pa.ListScalar):
        return 0 if value.values is None else int(value.values.nbytes)
    return (
        value.nbytes if isinstance(value, np.ndarray) else len(value) if isinstance(value, bytes | str) else 0
    )


def int64_id(name: str) -> int:
    """Returns 63 bits of the name's sha256: the `image_id`, by which losses tell images apart."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) >> 1


def joined_values(store: Store, holder: Shard | Heavy, column: str, ids: Sequence[str]) -> list[Any]:
    """Returns the values of `column` of rows `ids` from the shard `holder`; each of its row groups is read once.

    Raises VlpipeError if an id is not in that shard, or is in it more than once.
    """
    places = _places(store, holder)
    if lost := [i for i in ids if i not in places]:
        raise VlpipeError(
            f"{len(lost)} row(s) (first: {lost[0]}) have no {column} in {holder.path}; "
            "`vlpipe verify` compares these files with their records"
        )
    found: dict[str, Any] = {}
    with open_shard(store, holder) as file:
        for group in sorted({places[i][0] for i in ids}):
            in_group = [i for i in ids if places[i][0] == group]
            values = file.read_row_group(group, columns=[column])[column]
            found |= zip(in_group, _values(values.take([places[i][1] for i in in_group])), strict=True)
    return [found[i] for i in ids]


@lru_cache(maxsize=64)
def _places(store: Store, holder: Shard | Heavy) -> dict[str, tuple[int, int]]:
    """Returns id -> (row group, row in it) of a shard. Raises VlpipeError if it has an id more than once."""
    with open_shard(store, holder) as file:
        groups = [
            file.read_row_group(g, columns=["id"])["id"].to_pylist() for g in range(file.num_row_groups)
        ]
    places = {id_: (g, row) for g, ids in enumerate(groups) for row, id_ in enumerate(ids)}
    if len(places) < sum(map(len, groups)):
        raise VlpipeError(f"{holder.path} has an id more than once, so its values cannot be joined to rows")
    return places


class RowCache:
    """A cache of row groups, which are read in threads.

    It keeps the row groups that were requested last, and of the others the most recently used, up to `max_bytes` of
    images and other columns.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        max_bytes: int,
        num_threads: int,
        columns: Sequence[str] = ("image",),
        with_texts: bool = True,
    ) -> None:
        self.units, self.max_bytes, self.columns, self.with_texts = units, max_bytes, columns, with_texts
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="read")
        self._futures: dict[int, Future[Rows]] = {}  # most recently used last

    def want(self, units: Iterable[int], keep: Iterable[int] = ()) -> None:
        """Starts reading `units`. Row groups in neither `units` nor `keep` may be evicted."""
        needed = dict.fromkeys([*keep, *units])
        for unit in needed:
            known = self._futures.pop(unit, None)
            self._futures[unit] = known or self._pool.submit(
                read_unit, self.units[unit], self.columns, self.with_texts
            )
        self._drop({unit: future for unit, future in self._futures.items() if unit not in needed})

    def _drop(self, spare: dict[int, Future[Rows]]) -> None:
        sizes = {unit: future.result().num_bytes for unit, future in spare.items()}
        total = sum(sizes.values())
        for unit, size in sizes.items():
            if total <= self.max_bytes:
                return
            del self._futures[unit]
            total -= size

    def __getitem__(self, unit: int) -> Rows:
        return self._futures[unit].result()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
