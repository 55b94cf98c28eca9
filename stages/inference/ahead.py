"""Prepares the input of a model in threads while the model computes. Results and their order do not depend on the threads.

Pillow and libjpeg release Python's lock while they decode and resize.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

import pyarrow as pa

from vlpipe.pipeline.shard import Out

A = TypeVar("A")
B = TypeVar("B")
READY_BYTES = 256 * 2**20  # of results that wait for the model
WORK_BYTES = 512 * 2**20  # of pictures that are being decoded at once; a larger one is decoded alone
LOOK_S = 0.1  # seconds after which a waiting thread looks whether it shall end


class Room:
    """A limit in bytes on what several threads hold at once. A thread that asks for more than there is waits."""

    def __init__(self, num_bytes: int) -> None:
        self._most = self._left = num_bytes
        self._changed = threading.Condition()

    def take(self, num_bytes: int) -> int:
        """Waits for room and returns the bytes taken, to `give` back: at most the whole room."""
        num_bytes = min(num_bytes, self._most)
        with self._changed:
            self._changed.wait_for(lambda: self._left >= num_bytes)
            self._left -= num_bytes
        return num_bytes

    def give(self, num_bytes: int) -> None:
        """Gives bytes back."""
        with self._changed:
            self._left += num_bytes
            self._changed.notify_all()


class Working:
    """A stage's function `fn(rows, ahead)` with threads of its own for each call; a `TimedWork`.

    workers, is_pinned: see `Ahead`.
    """

    def __init__(
        self, fn: Callable[[pa.Table, Ahead], Out], workers: int | None, is_pinned: bool = False
    ) -> None:
        self._fn, self._workers, self._is_pinned = fn, workers, is_pinned
        self._seconds = {"waiting": 0.0, "computing": 0.0}

    def __call__(self, rows: pa.Table) -> Out:
        began = time.monotonic()
        ahead = Ahead(self._workers, self._is_pinned)
        try:
            with ahead:
                return self._fn(rows, ahead)
        finally:
            self._seconds["waiting"] += ahead.waiting_s
            self._seconds["computing"] += time.monotonic() - began - ahead.waiting_s

    def seconds(self) -> dict[str, float]:
        """Returns the seconds since it was last called: `waiting` for pictures, `computing` all else."""
        found, self._seconds = self._seconds, dict.fromkeys(self._seconds, 0.0)
        return found


class Ahead:
    """Threads that prepare batches for one call of a stage's function. Use it as a context manager: its end ends them.

    workers: threads that decode, None for one; 0: all happens in the calling thread. is_pinned: batches lie in memory
    from which a GPU copies by itself. room: for what is being decoded. waiting_s: seconds that the caller has waited
    for batches.
    """

    def __init__(self, workers: int | None = None, is_pinned: bool = False) -> None:
        self._workers = 1 if workers is None else workers
        self.is_pinned = is_pinned
        self.room = Room(WORK_BYTES)
        self.waiting_s = 0.0
        self._over = threading.Event()
        self._pool: ThreadPoolExecutor | None = None
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Ahead:
        if self._workers:
            self._pool = ThreadPoolExecutor(self._workers, "decode")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._over.set()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        for thread in self._threads:
            thread.join()

    def map(self, fn: Callable[[A], B], items: Iterable[A], num_bytes: int) -> Iterator[B]:
        """Yields `fn(item)` in order, computed by the workers. num_bytes: of one result; at most READY_BYTES wait."""
        if self._pool is None:
            yield from map(fn, items)
            return
        most = max(2 * self._workers, READY_BYTES // max(num_bytes, 1))
        pending: deque[Future[B]] = deque()
        for item in items:
            pending.append(self._pool.submit(fn, item))
            if len(pending) >= most:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def batches(self, made: Iterable[A]) -> Iterator[A]:
        """Yields what `made` yields, of which one more is made in a thread of its own while the caller works on the last.

        An exception in `made` is raised here, after what came before it.
        """
        if self._pool is None:
            yield from self._timed(iter(made))
            return
        ready: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=1)
        thread = threading.Thread(target=self._fill, args=(made, ready), name="batches", daemon=True)
        self._threads.append(thread)
        thread.start()
        while True:
            began = time.monotonic()
            kind, value = ready.get()
            self.waiting_s += time.monotonic() - began
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value

    def _fill(self, made: Iterable[Any], ready: queue.Queue[tuple[str, Any]]) -> None:
        try:
            for value in made:
                if not self._put(ready, ("value", value)):
                    return
            self._put(ready, ("end", None))
        except BaseException as error:  # raised in the caller's thread
            self._put(ready, ("error", error))

    def _put(self, ready: queue.Queue[tuple[str, Any]], item: tuple[str, Any]) -> bool:
        """Returns False if the caller has left."""
        while not self._over.is_set():
            try:
                ready.put(item, timeout=LOOK_S)
            except queue.Full:
                continue
            return True
        return False

    def _timed(self, made: Iterator[A]) -> Iterator[A]:
        while True:
            began = time.monotonic()
            value = next(made, self)
            self.waiting_s += time.monotonic() - began
            if value is self:
                return
            yield value  # type: ignore[misc]  # `self` marks the end
