"""Selects rows by a list of ids, such as a published subset: DataComp's `.npy` of uids, a text file, a Parquet column.

DataComp's format: https://github.com/mlfoundations/datacomp, `reshard.py`: an array of two unsigned 64-bit numbers per uid,
which are the 32 hexadecimal digits of the uid.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from vlpipe.pipeline.errors import VlpipeError, did_you_mean
from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import Out, Reject, need
from vlpipe.pipeline.stage import MapStage, Work

ENDINGS = (".txt", ".npy", ".parquet")
DIGEST = 16  # bytes kept per id
Digests = npt.NDArray[np.bytes_]


@dataclass(frozen=True, kw_only=True)
class InList(MapStage):
    """Rejects rows (filtered, `not_in_list`) whose `column` is not in `ids`; with `keep: others`, those that are in it.

    Images are not copied: the rows that stay refer to those of earlier steps. ids: a .txt with one id per line, a .npy of
    DataComp, or a .parquet with the column `list_column` (default: `column`). Each worker holds 16 bytes per id.
    Null is in no list.
    """

    ids: File
    column: str = "id"
    list_column: str | None = None
    keep: Literal["listed", "others"] = "listed"

    NAME: ClassVar[str] = "filter.in_list:InList"
    FILTERS: ClassVar[bool] = True

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "filter.in_list", id=pa.string(), **{self.column: pa.string()})
        return inp

    def preflight(self) -> list[str]:
        if self.ids.step is not None or self.ids.path.endswith(ENDINGS):
            return []
        return [f"ids: wanted a file that ends in {', '.join(ENDINGS)}, got {self.ids.path}"]

    @contextmanager
    def open(self) -> Iterator[Work]:
        listed = read_digests(self.ids.path, self.list_column or self.column)

        def work(batch: pa.Table) -> Out:
            inside = is_listed(batch[self.column].to_pylist(), listed)
            keep = inside if self.keep == "listed" else ~inside
            why = "not_in_list" if self.keep == "listed" else "in_list"
            gone = batch.select(["id", self.column]).filter(pa.array(~keep)).to_pylist()
            rejects = [Reject(row["id"], "filtered", why, str(row[self.column])[:200]) for row in gone]
            return Out(batch.filter(pa.array(keep)), rejects)

        yield work


def is_listed(ids: Iterable[str | None], listed: Digests) -> npt.NDArray[np.bool_]:
    """Returns for each id whether it is in a sorted array of digests."""
    wanted = [None if one is None else _digest(one) for one in ids]
    known = np.array([b"" if one is None else one for one in wanted], f"V{DIGEST}").view(f"S{DIGEST}")
    if not len(listed):
        return np.zeros(len(wanted), np.bool_)
    at = np.minimum(np.searchsorted(listed, known), len(listed) - 1)
    return (listed[at] == known) & np.array([one is not None for one in wanted], np.bool_)


def read_digests(path: str, column: str) -> Digests:
    """Returns the sorted digests of a file of ids, 16 bytes each. Raises VlpipeError for any other file."""
    parts = [np.frombuffer(b"".join(map(_digest, part)), f"S{DIGEST}") for part in _parts(path, column)]
    return np.unique(np.concatenate(parts)) if parts else np.empty(0, f"S{DIGEST}")


def _digest(one: str) -> bytes:
    """Returns 16 bytes, none of them zero at the end: numpy drops zeros there."""
    return hashlib.blake2b(one.encode("utf-8", "surrogatepass"), digest_size=DIGEST - 1).digest() + b"."


def _parts(path: str, column: str) -> Iterator[list[str]]:
    """Yields the ids of a file, at most 65,536 at once."""
    if path.endswith(".npy"):
        yield from _uids(path)
    elif path.endswith(".parquet"):
        with pq.ParquetFile(path) as file:
            if column not in file.schema_arrow.names:
                known = did_you_mean(column, file.schema_arrow.names)
                raise VlpipeError(f"{Path(path).name} has no column {column!r}{known}")
            for batch in file.iter_batches(65_536, columns=[column]):
                yield [str(one) for one in batch.column(0).to_pylist() if one is not None]
    else:
        yield from _lines(path)


def _lines(path: str) -> Iterator[list[str]]:
    with open(path, encoding="utf-8-sig") as file:
        part: list[str] = []
        try:
            for line in file:
                if one := line.strip():
                    part.append(one)
                if len(part) == 65_536:
                    yield part
                    part = []
        except UnicodeDecodeError as error:
            raise VlpipeError(f"{Path(path).name} is not UTF-8 text: {error}") from error
        yield part


def _uids(path: str) -> Iterator[list[str]]:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise VlpipeError(f"{Path(path).name} is not an array of numpy without objects: {error}") from error
    kind = found.dtype
    if found.ndim != 1 or kind.names is None or [kind[n] for n in kind.names] != [np.dtype("u8")] * 2:
        raise VlpipeError(
            f"{Path(path).name} has {found.ndim} dimension(s) of {kind}; wanted one of two u8, as DataComp's uids"
        )
    for start in range(0, len(found), 65_536):
        yield [f"{int(high):016x}{int(low):016x}" for high, low in found[start : start + 65_536].tolist()]
