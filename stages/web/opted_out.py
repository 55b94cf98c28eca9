"""The record of URLs that opted out: read from `<root>/opted_out/` once per run, and written as new opt-outs are noted.

It is stored in part files. The last part is rewritten as it grows, always as a whole file, so object stores work too.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlpipe.pipeline.inspect.opted_out import REL, SCHEMA, Row, part_names, read, rows_of
from vlpipe.pipeline.parquet.text_sets import DIGEST, Digests
from vlpipe.pipeline.storage.store import Store

PART_ROWS = 16_384  # rows of a full part; writing it takes 10 ms
WRITE_S = 0.5  # min time between two writes; all rows noted in between are written together


class _Evidence:
    """Maps the hash of a URL to its evidence texts. A text is stored once, since many URLs send the same one. Entries read
    from the store are in sorted arrays, 36 bytes per hash; entries noted since then are in a dict."""

    def __init__(self) -> None:
        self.hashes, self.words = np.empty(0, DIGEST), np.empty(0, np.uint32)
        self.noted: dict[bytes, tuple[int, ...]] = {}
        self.places: dict[str, int] = {}
        self.texts: list[str] = []

    def place(self, evidence: str) -> int:
        """Returns the index of a text, after adding it if it is new."""
        if evidence not in self.places:
            self.places[evidence] = len(self.texts)
            self.texts.append(evidence)
        return self.places[evidence]

    def read(self, parts: Sequence[tuple[Digests, array[int]]]) -> None:
        """Sets the entries read from the store. parts: per part file, its hashes and, for each, the index of its text."""
        hashes = np.concatenate([np.empty(0, DIGEST), *(one for one, _ in parts)])
        words = np.concatenate([np.empty(0, np.uint32), *(np.array(one, np.uint32) for _, one in parts)])
        order = np.argsort(hashes, kind="stable")
        self.hashes, self.words = hashes[order], words[order]

    def get(self, hash_: bytes) -> list[str]:
        """Returns the evidence texts of a hash, without repeats; empty if it has none."""
        noted = self.noted.get(hash_, ())
        if not len(self.hashes):  # the search takes 5 microseconds, for each request
            return [self.texts[place] for place in noted]
        low, high = (int(np.searchsorted(self.hashes, hash_, side)) for side in ("left", "right"))
        return [self.texts[place] for place in dict.fromkeys([*self.words[low:high].tolist(), *noted])]

    def add(self, hash_: bytes, evidence: str) -> bool:
        """Adds evidence for a hash and returns True; returns False if this text is already recorded for it."""
        if evidence in self.get(hash_):
            return False
        self.noted[hash_] = (*self.noted.get(hash_, ()), self.place(evidence))
        return True


class OptedOut:
    """The record of opt-outs, shared by all steps of a run: only the driver, which holds the root's lock, writes it.

    Without a root it is kept in memory only. `said`, `note` and `kept` must be called in one asyncio loop. Hashes are
    those of `hash_of_url`.
    """

    def __init__(self, root: Store | None = None) -> None:
        self._root = root
        self._said = _Evidence()
        self._part, self._tail = 0, list[Row]()  # number and rows of the last part
        self._fresh: list[Row] = []
        self._num_noted = self._num_kept = 0
        self._writing: asyncio.Task[None] | None = None
        self._written_at = 0.0
        self._loaded = root is None

    def load(self) -> None:
        """Reads the record of earlier runs, once. As this is slow, services call it when they are created."""
        if self._root is None or self._loaded:
            return
        self._root.sweep(REL)
        parts: list[tuple[Digests, array[int]]] = []
        for name in part_names(self._root):
            hashes, table = read(self._root, name)
            parts.append((hashes, array("I", map(self._said.place, table["evidence"].to_pylist()))))
            self._part, self._tail = int(name.removesuffix(".parquet")), rows_of(table)
        self._said.read(parts)
        self._turn_page()
        self._loaded = True

    def said(self, hash_: str) -> Sequence[str]:
        """Returns the evidence for the URL with this hash; empty if it has not opted out."""
        return self._said.get(bytes.fromhex(hash_))

    def note(self, hash_: str, evidence: str) -> None:
        """Records `evidence` (one line) for a hash, unless it is recorded already."""
        if self._said.add(bytes.fromhex(hash_), evidence) and self._root is not None:
            self._fresh.append((hash_, evidence, int(time.time()) * 1000))
            self._num_noted += 1

    async def kept(self) -> None:
        """Waits until everything noted so far is stored. Raises the store's error, such as OSError, if a write fails."""
        wanted = self._num_noted
        while self._num_kept < wanted:
            if self._writing is None:
                self._writing = asyncio.ensure_future(self._write())
            await asyncio.shield(self._writing)

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
