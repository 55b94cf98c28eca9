"""The bodies of responses that wait in a worker until they are checked: in memory up to a limit, then in a temporary file.

A host with a few hundred camera originals in a list would otherwise fill the memory: the rows of several batches are
fetched ahead. No body is refused and no request waits in the middle, as a server might then close the connection.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterable
from threading import RLock
from typing import IO, Any, TypeVar

from vlpipe.stages.web.event_loop import Asked

MEMORY_BYTES = 128 << 20  # of the bodies in memory; 4 batches of 512 images of 60 KB are 123 MB
WAITING_BYTES = 1 << 30  # of all bodies, above which no request is sent for a row that nobody waits for
BLOCK_BYTES = 1 << 16  # of the temporary file; freed blocks are used again

T = TypeVar("T")


class Bodies:
    """All bodies of a worker. The temporary file has no name, so that none is left when a process is killed.

    Bodies grow in the loop, and are read and closed in any thread. memory_bytes: max bytes in memory. waiting_bytes: when
    all bodies have that many, requests that nobody waits for are not sent until half of them are dropped.
    """

    def __init__(self, memory_bytes: int, waiting_bytes: int) -> None:
        self._memory_bytes, self._waiting_bytes = memory_bytes, waiting_bytes
        self._loop = asyncio.get_running_loop()
        self._lock = RLock()  # a body may be closed by the garbage collector, in any place
        self._in_memory = self._waiting = 0
        self._full = False
        self._parked: list[tuple[Asked[Any], asyncio.Future[None]]] = []
        self._file: IO[bytes] | None = None
        self._free: list[int] = []  # blocks
        self._num_blocks = 0

    def is_full_for(self, asked: Asked[T]) -> bool:
        """Returns True if the request must wait: unread bodies are at their limit, and its answer is not wanted yet."""
        return self._full and not asked.wanted

    async def room_for(self, asked: Asked[T]) -> None:
        """Waits until the request may be sent."""
        while True:
            with self._lock:
                if not self.is_full_for(asked):
                    return
                waiting = self._loop.create_future()
                self._parked.append((asked, waiting))
            await waiting

    def want(self, asked: Iterable[Asked[T]]) -> None:
        """Lets these requests be sent, however many bytes wait. Called before their answers are waited for."""
        with self._lock:
            for one in asked:
                one.wanted = True
            self._wake()

    def add(self, body: Body, data: bytes) -> None:
        """Adds bytes to a body, which moves to the file if all bodies in memory would exceed `memory_bytes`."""
        with self._lock:
            self._waiting += len(data)
            self._full = self._full or self._waiting >= self._waiting_bytes
            body.num_bytes += len(data)
            if body.blocks is None and self._in_memory + len(data) <= self._memory_bytes:
                self._in_memory += len(data)
                body.pieces.append(data)
            else:
                self._in_memory -= sum(map(len, body.pieces)) if body.blocks is None else 0
                body.pieces.append(data)
                self._move(body)

    def _move(self, body: Body) -> None:
        """Writes the bytes in memory of a body to the file; a block that is not full yet stays in memory."""
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="vlpipe-bodies-")  # noqa: SIM115
        body.blocks = body.blocks or []
        data = b"".join(body.pieces)
        num_whole = 0 if len(data) < BLOCK_BYTES else len(data) // BLOCK_BYTES * BLOCK_BYTES
        self._write(body, data[:num_whole])
        body.pieces = [data[num_whole:]]

    def _write(self, body: Body, data: bytes) -> None:
        assert self._file is not None
        assert body.blocks is not None
        for start in range(0, len(data), BLOCK_BYTES):
            if not self._free:
                self._free.append(self._num_blocks)
                self._num_blocks += 1
            self._file.seek(self._free[-1] * BLOCK_BYTES)
            self._file.write(data[start : start + BLOCK_BYTES])
            body.blocks.append(self._free.pop())

    def end(self, body: Body) -> None:
        """Ends a body: if it is in the file, its last bytes are written there too."""
        with self._lock:
            if body.blocks is not None:
                self._write(body, b"".join(body.pieces))
                body.pieces = []

    def read(self, body: Body) -> bytes:
        """Returns the bytes of a body that is not closed."""
        with self._lock:
            pieces = [*map(self._block, body.blocks or ()), *body.pieces]
            data = b"".join(pieces)[: body.num_bytes]
            if body.blocks is None:
                body.pieces = [data]
            return data

    def _block(self, block: int) -> bytes:
        assert self._file is not None
        self._file.seek(block * BLOCK_BYTES)
        return self._file.read(BLOCK_BYTES)

    def drop(self, body: Body) -> None:
        """Forgets the bytes of a body; waiting requests are sent when half of `waiting_bytes` is free again."""
        if not body.num_bytes:  # also when it was forgotten before
            return
        with self._lock:
            self._waiting -= body.num_bytes
            if body.blocks is None:
                self._in_memory -= body.num_bytes
            self._free += body.blocks or ()
            body.num_bytes, body.pieces, body.blocks = 0, [], None
            if self._file and self._num_blocks and len(self._free) == self._num_blocks:
                self._free, self._num_blocks = [], 0
                self._file.truncate(0)
            if self._full and self._waiting <= self._waiting_bytes // 2:
                self._full = False
                self._wake()

    def _wake(self) -> None:
        """Wakes those who wait in `room_for` and may go on."""
        go = [one for one in self._parked if not self.is_full_for(one[0])]
        if go and not self._loop.is_closed():
            self._parked = [one for one in self._parked if self.is_full_for(one[0])]
            self._loop.call_soon_threadsafe(_go_on, [waiting for _, waiting in go])

    def close(self) -> None:
        """Deletes the temporary file."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None


class Body:
    """The bytes of one response. pieces: those in memory; blocks: its blocks in the file, None if it is not there."""

    __slots__ = ("_bodies", "blocks", "num_bytes", "pieces")

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self.pieces: list[bytes] = []
        self.blocks: list[int] | None = None
        self.num_bytes = 0

    def add(self, data: bytes) -> None:
        self._bodies.add(self, data)

    def end(self) -> None:
        """Called after the last `add`."""
        self._bodies.end(self)

    def read(self) -> bytes:
        return self._bodies.read(self)

    def close(self) -> None:
        """Forgets the bytes, so that others have room. May be called more than once; deleting the body does it too."""
        self._bodies.drop(self)

    __del__ = close


def _go_on(waiting: Iterable[asyncio.Future[None]]) -> None:
    for one in waiting:
        if not one.done():
            one.set_result(None)
