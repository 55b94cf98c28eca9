"""`<root>/opted_out/`: URLs that said no, by hash, with their words. What fetches into this root asks none of them again.

No key and no receipt knows of it: a shard that is finished is not fetched again, and one that is not has seen the world
as it was. Remove the folder, and later fetches ask again. Parts of Parquet, of which the last is written anew as it
grows: one whole file per write, on any store.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from vlpipe.pipeline.forgotten import canonical_url, hashed
from vlpipe.pipeline.shard import open_parquet
from vlpipe.pipeline.store import Store

REL = "opted_out"
SCHEMA = pa.schema(
    [
        ("hash", pa.string()),  # as in `forgotten.parquet`: of the canonical URL
        ("evidence", pa.string()),  # verbatim
        ("first_seen", pa.timestamp("ms", "UTC")),
    ]
)
PART_ROWS = 16_384  # of a part that is full; writing it took 10 ms
WRITE_S = 0.5  # between two writes: what comes meanwhile goes into one

Row = tuple[str, str, int]  # hash, evidence, ms since 1970


def hash_of_url(url: str) -> str:
    return hashed("url", canonical_url(url))


class OptedOut:
    """One for all steps of a run: only its driver, which holds the root's lock, writes. Without a root it lasts as long as
    the object. `said`, `note` and `kept` are called in one asyncio loop."""

    def __init__(self, root: Store | None = None) -> None:
        self._root = root
        self._said: dict[str, str] = {}  # hash -> evidence; where there are several, lines
        self._part, self._tail = 0, list[Row]()  # number and rows of the part that grows
        self._fresh: list[Row] = []
        self._num_noted = self._num_kept = 0
        self._writing: asyncio.Task[None] | None = None
        self._written_at = 0.0
        self._loaded = root is None

    def load(self) -> None:
        """Read what earlier runs kept, once. It takes its time: for a service while it is made, not while it is asked."""
        if self._root is None or self._loaded:
            return
        self._loaded = True
        self._root.sweep(REL)
        for name in part_names(self._root):
            self._part, self._tail = int(name.removesuffix(".parquet")), read_part(self._root, name)
            for hash_, evidence, _ in self._tail:
                self._add(hash_, evidence)
        self._turn_page()

    def said(self, hash_: str) -> Sequence[str]:
        """How the URL of this hash said no; empty: it did not."""
        found = self._said.get(hash_)
        return found.split("\n") if found else ()

    def note(self, hash_: str, evidence: str) -> None:
        """`evidence` is one line. What was said before is not noted twice."""
        if self._add(hash_, evidence) and self._root is not None:
            self._fresh.append((hash_, evidence, int(time.time()) * 1000))
            self._num_noted += 1

    async def kept(self) -> None:
        """Return when everything noted so far is on disk. OSError and such when it cannot be written."""
        wanted = self._num_noted
        while self._num_kept < wanted:
            if self._writing is None:
                self._writing = asyncio.ensure_future(self._write())
            await asyncio.shield(self._writing)

    def _add(self, hash_: str, evidence: str) -> bool:
        known = self.said(hash_)
        if evidence not in known:
            self._said[hash_] = sys.intern("\n".join((*known, evidence)))  # many say the same
        return evidence not in known

    async def _write(self) -> None:
        try:
            await asyncio.sleep(self._written_at + WRITE_S - time.monotonic())
            num = len(self._fresh)
            rows = [*self._tail, *self._fresh]
            await asyncio.to_thread(self._put, rows)
            del self._fresh[:num]
            self._tail = rows
            self._num_kept += num
            self._turn_page()
        finally:
            self._written_at, self._writing = time.monotonic(), None

    def _put(self, rows: list[Row]) -> None:
        assert self._root is not None
        columns = [list(column) for column in zip(*rows, strict=True)]
        table = pa.table(columns, schema=SCHEMA)
        with self._root.writing(f"{REL}/{self._part:06d}.parquet") as part:
            pq.write_table(table, part, compression="zstd", write_page_checksum=True)

    def _turn_page(self) -> None:
        if len(self._tail) >= PART_ROWS:
            self._part, self._tail = self._part + 1, []


def part_names(root: Store) -> list[str]:
    return [name for name in root.list(REL) if name.endswith(".parquet")]  # a write may be under way


def read_part(root: Store, name: str) -> list[Row]:
    with open_parquet(root, f"{REL}/{name}") as file:
        table = file.read()
    seen = table["first_seen"].cast(pa.int64())
    return list(
        zip(*(column.to_pylist() for column in (table["hash"], table["evidence"], seen)), strict=True)
    )


def read_hashes(root: Store) -> frozenset[str]:
    """Of all URLs that said no."""
    return frozenset(row[0] for name in part_names(root) for row in read_part(root, name))
