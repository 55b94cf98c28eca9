"""Embeddings in a memory-mapped array on disk: a million of 512 dimensions do not need 2 GB of memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import Dataset
from vlpipe.pipeline.storage.store import Store
from vlpipe.stages.dedup.cosine import Rows, Vectors
from vlpipe.stages.dedup.row_ids import Names, joined, packed

NORM_ERROR = 1e-3
READ_ROWS = 4096


def check_embedding(schema: pa.Schema, who: str) -> None:
    """Raises SchemaError unless there is a column `embedding` of float lists of one fixed size."""
    if "embedding" not in schema.names:
        need(schema, who, embedding=pa.list_(pa.float32()))  # raises, and lists the columns
    found = schema.field("embedding").type
    if not pa.types.is_fixed_size_list(found) or found.value_type != pa.float32():
        raise SchemaError(
            f"{who} needs float vectors of one width in column 'embedding' (fixed_size_list<float>), but it is {found}"
        )


def earlier_files(against: File | None, check: Callable[[pa.Schema, str], None]) -> list[str]:
    """Returns the Parquet files of `against` (a file or a folder). Each must have an id and pass `check(schema, who)`."""
    if against is None:
        return []
    path = Path(against.path)
    files = [path] if path.is_file() else sorted(path.glob("*.parquet"))
    files = [f for f in files if not f.name.startswith("_")]
    if not files:
        raise VlpipeError(
            f"against: there is no Parquet file at {path}; wanted a Parquet file, or a folder of them, written by "
            "`vlpipe export`"
        )
    for file in files:
        schema = pq.read_schema(file)
        need(schema, f"against ({file})", id=pa.string())
        check(schema, f"against ({file})")
    return [str(f) for f in files]


def number_rows(new: Names, files: list[str]) -> tuple[Names, Rows]:
    """Numbers new rows by id, then rows of the earlier set by id. Returns ids by row number, and row numbers in input order.

    Raises VlpipeError if an id is in both sets, or repeated in the earlier set.
    """
    earlier = Names(packed(pq.read_table(f, columns=["id"])["id"] for f in files))
    ids, repeated = joined(new, earlier), earlier.num_repeated()
    known = ids.num_repeated() - repeated
    if known:
        raise VlpipeError(
            f"{known} row(s) of this step have the id of a row in the earlier set (`against`: {files[0]}, ...): "
            "give only new rows to dedup"
        )
    if repeated:
        raise VlpipeError(
            f"{repeated} id(s) occur more than once in the earlier set (`against`: {files[0]}, ...); keep one row of each"
        )
    order = np.concatenate([new.order(), len(new) + earlier.order()])
    numbers = np.empty_like(order)
    numbers[order] = np.arange(len(order))
    return ids.reordered(order), numbers


def store_vectors(store: Store, inputs: tuple[Dataset, ...], files: list[str], numbers: Rows) -> Vectors:
    """Returns embeddings by row number, (N, D), memory-mapped.

    Raises VlpipeError if an embedding is missing, not finite or not of unit norm, or if widths differ.
    """
    width = _one_width(inputs, files)
    if not len(numbers):
        return np.empty((0, width), np.float32)
    if not store.exists("vectors.npy"):
        with store.writing("vectors.npy", sync_folder=False) as part:
            out = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=(len(numbers), width))
            start = 0
            for batch in _batches(inputs, files):
                found = pa.concat_arrays(batch["embedding"].chunks)
                _check_vectors(found, batch["id"])
                rows = numbers[start : start + len(found)]
                out[rows] = found.flatten().to_numpy().reshape(len(found), -1)
                start += len(found)
            out.flush()
    vectors: Vectors = np.load(store.path("vectors.npy"), mmap_mode="r")
    return vectors


def _one_width(inputs: tuple[Dataset, ...], files: list[str]) -> int:
    schemas = [data.schema for data in inputs] + [pq.read_schema(f) for f in files]
    widths = {schema.field("embedding").type.list_size for schema in schemas}
    if len(widths) != 1:
        raise VlpipeError(
            f"the embeddings of the inputs (with `against`) have different widths, {sorted(widths)}; compute all of them "
            "with one model"
        )
    return int(widths.pop())


def _batches(inputs: tuple[Dataset, ...], files: list[str]) -> Iterator[pa.Table]:
    for data in inputs:
        yield from data.batches(["id"], want_heavy=["embedding"])
    for file in files:
        for batch in pq.ParquetFile(file, page_checksum_verification=True).iter_batches(
            READ_ROWS, columns=["id", "embedding"]
        ):
            yield pa.Table.from_batches([batch])


def _check_vectors(found: pa.FixedSizeListArray, ids: pa.ChunkedArray) -> None:
    if found.null_count:
        bad, what = np.asarray(found.is_null()), "null"
    else:
        values = found.flatten().to_numpy().astype(np.float64).reshape(len(found), -1)
        bad, what = ~(np.abs(np.linalg.norm(values, axis=1) - 1) <= NORM_ERROR), "not of norm 1"
    if bad.any():
        first = ids[int(np.flatnonzero(bad)[0])]
        raise VlpipeError(
            f"the embedding of {bad.sum()} row(s) is {what} (first: id {first}); the step that computes embeddings must "
            "write a vector of norm 1 for each row"
        )


def same_vectors(vectors: Vectors, num_new: int) -> Rows:
    """Returns, per row, the representative of all rows with the same vector: one of the earlier set, else the first row."""
    digests = b"".join(hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in vectors)
    return first_equal(np.frombuffer(digests, np.uint64).reshape(-1, 2), num_new)


def first_equal(values: npt.NDArray[Any], num_new: int) -> Rows:
    """(N, W) -> (N,): per row, the first row with equal values; rows of the earlier set (from `num_new` on) come first."""
    rolled = np.roll(np.arange(len(values)), -num_new)
    order = rolled[np.lexsort(values[rolled].T)]  # stable: equal rows keep their order
    starts = np.ones(len(values), np.bool_)
    starts[1:] = (values[order[1:]] != values[order[:-1]]).any(axis=1)
    leader = np.empty(len(values), np.int64)
    leader[order] = order[starts][np.cumsum(starts) - 1]
    return leader


def sample_of(marks: npt.NDArray[np.uint64], rows: Rows, num: int) -> Rows:
    """Returns at most `num` rows, ascending: those with the smallest `marks`, so the sample depends only on ids."""
    return np.sort(rows[np.argsort(marks[rows], kind="stable")[:num]])
