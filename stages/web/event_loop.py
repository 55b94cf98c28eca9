"""An asyncio loop in its own thread, so that a stage's function can be synchronous."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")
NUM_DNS_THREADS = 32  # `getaddrinfo` blocks
# New objects after which Python looks for garbage in the youngest. By its own 700 it takes 6 % of a fetch to look at the rows
# under way, which are no garbage: some 25 objects each, and 2,000 rows of four batches.
YOUNG_OBJECTS = 50_000


class Loop:
    """A loop that runs in another thread; create it with `running_loop`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Starts a coroutine in the loop and returns its future."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def submit_all(
        self, works: Sequence[tuple[Coroutine[Any, Any, T], concurrent.futures.Future[T]]]
    ) -> None:
        """Starts coroutines, each with the future that gets its result or error; wakes the loop only once for all.

        Cancelling a future cancels the coroutine.
        """

        def start() -> None:
            for work, future in works:
                task = self._loop.create_task(work)
                task.add_done_callback(partial(_settle, future))
                future.add_done_callback(partial(self._cancel_task, task))

        self._loop.call_soon_threadsafe(start)

    def _cancel_task(self, task: asyncio.Task[T], future: concurrent.futures.Future[T]) -> None:
        if future.cancelled():
            self._loop.call_soon_threadsafe(task.cancel)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine in the loop, waits, and returns its result or raises its error."""
        return self.submit(work).result()


def _settle(future: concurrent.futures.Future[T], task: asyncio.Task[T]) -> None:
    """Copies the result or error of the task to the future, which another thread may wait for."""
    if task.cancelled():
        future.cancel()
    elif future.set_running_or_notify_cancel():
        error = task.exception()
        if error is None:
            future.set_result(task.result())
        else:
            future.set_exception(error)


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
