"""An asyncio loop in its own thread, so that a stage's function can be synchronous."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")
NUM_DNS_THREADS = 32  # `getaddrinfo` blocks
# New objects after which Python looks for garbage among them. With its own 700 it takes 6 % of a fetch to look at the rows
# under way, which are no garbage: some 25 objects each, of 2,000 rows in four batches.
YOUNG_OBJECTS = 50_000


class Asked(Generic[T]):
    """The future result of a coroutine in the loop; one other thread may wait for it.

    It does what is needed of `concurrent.futures.Future`, which has a lock and a condition each, in a fifth of the time.
    wanted: a thread waits for it, so it is worked on even if `waiting_bytes` wait already (`web.bodies`).
    """

    __slots__ = ("_error", "_event", "_found", "_is_done", "_loop", "_task", "wanted")

    def __init__(self) -> None:
        self.wanted = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[T] | None = None
        self._found: T | None = None
        self._error: BaseException | None = None
        self._is_done = False
        self._event: Event | None = None  # somebody waits

    def exception(self) -> BaseException | None:
        """Waits until it is done, and returns its error, or None if there is a result."""
        if not self._is_done:
            self._event = Event()
            if not self._is_done:  # the loop sets it before it looks for the event
                self._event.wait()
        return self._error

    def result(self) -> T:
        """Waits for the result and returns it, or raises its error: CancelledError if it was cancelled."""
        error = self.exception()
        if error is not None:
            raise error
        return cast(T, self._found)

    def cancel(self) -> None:
        """Cancels the coroutine, unless it is done."""
        if not self._is_done and self._loop is not None:
            self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _start(self, work: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> None:
        """Called in the loop."""
        self._task = loop.create_task(work)
        self._task.add_done_callback(self._settle)

    def _settle(self, task: asyncio.Task[T]) -> None:
        self._task = None
        self._error = concurrent.futures.CancelledError() if task.cancelled() else task.exception()
        if self._error is None:
            self._found = task.result()
        self._is_done = True
        if self._event is not None:
            self._event.set()


class Loop:
    """A loop that runs in another thread; create it with `running_loop`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Starts a coroutine in the loop and returns its future."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def submit_all(self, works: Sequence[tuple[Coroutine[Any, Any, T], Asked[T]]]) -> None:
        """Starts coroutines, each with what gets its result or error; wakes the loop only once for all."""

        def start() -> None:
            for work, asked in works:
                asked._start(work, self._loop)

        for _, asked in works:
            asked._loop = self._loop
        self._loop.call_soon_threadsafe(start)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine in the loop, waits, and returns its result or raises its error."""
        return self.submit(work).result()


@contextmanager
def running_loop() -> Iterator[Loop]:
    """Yields a Loop that runs in a daemon thread; on exit, its remaining tasks are cancelled and the thread ends.

    Meanwhile, garbage is collected after YOUNG_OBJECTS.
    """
    loop = asyncio.SelectorEventLoop()  # libcurl's sockets need a selector loop, on Windows too
    executor = ThreadPoolExecutor(NUM_DNS_THREADS, thread_name_prefix="dns")
    loop.set_default_executor(executor)
    thread = Thread(target=loop.run_forever, name="ingest-loop", daemon=True)
    thread.start()
    before = gc.get_threshold()
    gc.set_threshold(before[0] and max(YOUNG_OBJECTS, before[0]), *before[1:])
    try:
        yield Loop(loop)
    finally:
        gc.set_threshold(*before)
        asyncio.run_coroutine_threadsafe(_cancel_all(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        executor.shutdown(wait=False, cancel_futures=True)  # do not wait for a slow name server
        loop.close()


async def _cancel_all() -> None:
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
