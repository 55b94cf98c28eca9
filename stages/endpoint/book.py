"""The answers of a root, kept by the driver: all steps of a run share one `Book`, and each worker talks to it through a
`Keeper`, the step's service.

Workers send answers as they come. The driver appends them to the segment of the worker's shard at once, so that they outlive
a kill of any process, and syncs them to the disk once a second. When the shard is committed, or its worker is gone, the
segment becomes a Parquet file. Workers read those files themselves; the driver tells them which.
Memory: 12 bytes per stored answer, and the open segments, of at most SEAL_BYTES each.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from vlpipe.pipeline.engine.records.answers import (
    OPEN,
    Answer,
    Keys,
    key_of,
    line_of,
    next_number,
    number_of,
    part_names,
    read_keys,
    recover,
    write_part,
)
from vlpipe.pipeline.errors import VlpipeError, explain
from vlpipe.pipeline.service import Peer
from vlpipe.pipeline.storage.store import Store

SEAL_BYTES = 16 << 20  # a segment of this size becomes a Parquet file before its shard is committed
SYNC_S = 1.0
REPLY_ANSWERS = 2_000  # in one message to a worker
Asked = Sequence[Sequence[str]]  # (id, request) each


class KeyIndex:
    """Key -> numbers of the files that have it. Sorted runs of doubling size: adding n keys costs n log n in all."""

    def __init__(self) -> None:
        self._runs: list[tuple[Keys, npt.NDArray[np.int32]]] = []

    def add(self, keys: Keys, number: int) -> None:
        order = np.argsort(keys, kind="stable")
        self._runs.append((keys[order], np.full(len(keys), number, np.int32)))
        while len(self._runs) > 1 and 2 * len(self._runs[-1][0]) > len(self._runs[-2][0]):
            (a, of_a), (b, of_b) = self._runs[-2:]
            both, of_both = np.concatenate([a, b]), np.concatenate([of_a, of_b])
            order = np.argsort(both, kind="stable")
            self._runs[-2:] = [(both[order], of_both[order])]

    def files(self, keys: Keys) -> list[int]:
        """Returns the sorted numbers of the files that have one of `keys`."""
        found: set[int] = set()
        for known, numbers in self._runs:
            low, high = np.searchsorted(known, keys, "left"), np.searchsorted(known, keys, "right")
            for start, end in zip(low[high > low].tolist(), high[high > low].tolist(), strict=True):
                found.update(numbers[start:end].tolist())
        return sorted(found)


class Segment:
    """The answers of one worker's shard so far. On a local root a file that grows; on an object store, which cannot append,
    one more file each SYNC_S."""

    def __init__(self, root: Store) -> None:
        self._root, self.name = root, uuid.uuid4().hex[:12]
        self.answers: list[Answer] = []
        self.by_key: dict[int, list[Answer]] = {}
        self.num_bytes = 0
        self.paths: list[str] = []
        self._file: IO[bytes] | None = None
        self._unsynced: list[bytes] = []
        self._is_dirty = False
        if root.is_local:
            root.check_fence()
            self.paths = [f"{OPEN}/{self.name}.jsonl"]
            os.makedirs(root.path(OPEN), exist_ok=True)
            self._file = open(root.path(self.paths[0]), "ab", buffering=0)  # noqa: SIM115

    def add(self, answers: Iterable[Answer]) -> None:
        new = [*answers]
        data = b"".join(map(line_of, new))
        if self._file is not None:
            self._file.write(data)
        else:
            self._unsynced.append(data)
        self._is_dirty = True
        self.answers += new
        self.num_bytes += len(data)
        for one in new:
            self.by_key.setdefault(key_of(one.id, one.request), []).append(one)

    def sync(self) -> None:
        """Makes what was added durable. Called in a thread."""
        if not self._is_dirty:
            return
        self._is_dirty = False
        if self._file is not None:
            self._root.check_fence()
            os.fsync(self._file.fileno())
        else:
            data, self._unsynced = b"".join(self._unsynced), []
            path = f"{OPEN}/{self.name}-{len(self.paths):06d}.jsonl"
            self.paths.append(path)
            self._root.write_bytes(path, data)

    def end(self) -> None:
        """Removes the segment's files: its answers are in a Parquet file."""
        if self._file is not None:
            self._file.close()
        for path in self.paths:
            self._root.remove(path)


class Book:
    """All answers of a root. Methods other than `load` are called in one asyncio loop."""

    def __init__(self, root: Store | None = None) -> None:
        self._root = root
        self._index = KeyIndex()
        self._open: dict[Peer, Segment] = {}
        self._sealing: list[Segment] = []
        self._next = 0
        self._loaded = False
        self._syncing: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.broken = ""  # why nothing can be stored any more

    @property
    def url(self) -> str:
        """The root as any process on a machine that sees it can open it."""
        if self._root is None:
            return ""
        return self._root.path("") if self._root.is_local else self._root.url

    def load(self) -> None:
        """Recovers what a killed run left, and reads the keys of all answers, once. Called by the driver, before work."""
        if self._loaded or self._root is None:
            return
        recover(self._root)
        for name in part_names(self._root):
            self._index.add(read_keys(self._root, number_of(name)), number_of(name))
        self._next = next_number(self._root)
        self._loaded = True

    def find(self, asked: Asked) -> tuple[list[int], list[Answer]]:
        """Returns (numbers of the files that may hold answers, answers that are in no file yet)."""
        keys = np.array([key_of(*one) for one in asked], np.int64)
        wanted = {(one[0], one[1]) for one in asked}
        found = [
            answer
            for segment in (*self._open.values(), *self._sealing)
            for key in keys.tolist()
            for answer in segment.by_key.get(key, ())
            if (answer.id, answer.request) in wanted
        ]
        return self._index.files(keys), found

    def add(self, peer: Peer, answers: Iterable[Answer]) -> None:
        """Stores answers of a worker. Raises OSError or VlpipeError if that fails."""
        if self._root is None:
            return
        if peer not in self._open:
            self._open[peer] = Segment(self._root)
        segment = self._open[peer]
        segment.add(answers)
        if self._syncing is None:
            self._syncing = self._start(self._sync_soon())
        if segment.num_bytes >= SEAL_BYTES:
            self.seal(peer, lambda error: None)

    def seal(self, peer: Peer, then: Callable[[str], None]) -> None:
        """Makes a Parquet file of a worker's segment; calls `then` with "" afterwards, or with what went wrong."""
        segment = self._open.pop(peer, None)
        if segment is not None:
            self._sealing.append(segment)
        self._start(self._seal(segment, then))

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _seal(self, segment: Segment | None, then: Callable[[str], None]) -> None:
        if segment is not None:
            assert self._root is not None
            number, self._next = self._next, self._next + 1
            try:
                keys = await asyncio.to_thread(write_part, self._root, number, segment.answers)
                self._index.add(keys, number)
                self._sealing.remove(segment)
                await asyncio.to_thread(segment.end)
            except (OSError, VlpipeError) as error:
                self.broken = explain(error)
        then(self.broken)

    async def _sync_soon(self) -> None:
        try:
            await asyncio.sleep(SYNC_S)
            for segment in [*self._open.values()]:
                await asyncio.to_thread(segment.sync)
        except (OSError, VlpipeError) as error:
            self.broken = explain(error)
        finally:
            self._syncing = None


class Keeper:
    """The service of a step: takes and finds answers for its workers. Messages of workers: {"find": n, "asked": [...]},
    {"keep": [...]} and {"commit": n}; replies: {"found": n, "files": [...], "answers": [...], "more": bool},
    {"committed": n} and {"error": text}."""

    def __init__(self, book: Book) -> None:
        self._book = book

    def heard(self, peer: Peer, message: Any) -> None:
        book = self._book
        try:
            if "keep" in message:
                book.add(peer, [Answer(*one) for one in message["keep"]])
            elif "find" in message:
                self._find(peer, message["find"], message["asked"])
            elif "commit" in message:
                number = message["commit"]
                book.seal(peer, lambda error: peer.send({"error": error} if error else {"committed": number}))
        except (OSError, VlpipeError) as error:
            book.broken = explain(error)
        if book.broken:
            peer.send({"error": book.broken})

    def _find(self, peer: Peer, number: int, asked: Asked) -> None:
        files, answers = self._book.find(asked)
        for first in range(0, max(len(answers), 1), REPLY_ANSWERS):
            some = answers[first : first + REPLY_ANSWERS]
            is_last = first + REPLY_ANSWERS >= len(answers)
            peer.send(
                {
                    "found": number,
                    "files": files if is_last else [],
                    "answers": some,
                    "more": not is_last,
                    "root": self._book.url,
                }
            )

    def left(self, peer: Peer) -> None:
        self._book.seal(peer, lambda error: None)
