"""How many requests a worker has under way, found from how the server answers.

Growth: the limit doubles until answers per second stop to grow with it, then it grows by a sixteenth at a time (additive
increase). It grows only while all of it is used and nothing is refused. Cut: after a 5xx or a timeout, or if more than
REFUSED of the requests get a 429, at most once per COOL_S; and where latency rises and answers per second do not, since such
requests only wait in the server's queue. A request that was refused with 429 waits as long as Retry-After says and counts as
under way meanwhile. So a server with a limit per second is asked at its rate: what it refuses leaves less to send.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import Callable

START = 8
CUT = 0.8
COOL_S = 1.0  # seconds between two cuts: one overload is told by many answers
PROBE_S = 5.0  # seconds until the limit may pass the last one that was cut
REFUSED = 0.1  # share of requests
MEMORY_S = 2.0  # in which that share is counted
AGAIN_S = 5.0  # seconds between two cuts from which on the later one is a new overload, and not the rest of the last
WAIT_S, MAX_WAIT_S = (
    0.5,
    20.0,
)  # after a 429 without Retry-After; doubles, times a random factor of 0.5 to 1.5
WINDOW_S = 0.25  # least time over which answers are counted
LONG_S = 5.0  # after which fewer than two answers per request under way are enough
FULL = 0.7  # share of answers that came while the limit was reached, from which on it is what limits
GAIN = 1.05  # more answers per second by this factor are more
SLOWER = 1.25  # latency by this factor is higher


class Pace:
    """Admits requests in order: `turn` waits; then one of `answered`, `failed` and `left` is called. `refused` may be called
    before `left`. most: maximum number of requests under way. clock: seconds, of the running loop by default.
    """

    def __init__(self, most: int, clock: Callable[[], float] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._clock = clock or self._loop.time
        self._most = most
        self.limit = float(min(START, most))
        self.under_way = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._cut_at = -COOL_S
        self._refused: tuple[float, float] | None = None  # (limit, time) of the last overload
        self._doubles_to = float("inf")  # limits below this are doubled
        self._best: tuple[float, float] | None = None  # (answers per second, latency in s) of the best window
        self.answered_at = self._clock()
        self.num_refused = 0
        self._recent = [0.0, 0.0]  # requests answered and refused, the older the less they count
        self._counted_at = self.answered_at
        self._begin_window()

    async def turn(self, is_again: bool = False) -> None:
        """Waits until a request may be sent. is_again: before those that were not sent yet."""
        if not self._waiting and self.under_way < int(self.limit):
            self.under_way += 1
            return
        waiting = self._loop.create_future()
        if is_again:
            self._waiting.appendleft(waiting)
        else:
            self._waiting.append(waiting)
        self._wake()
        try:
            await waiting
        except asyncio.CancelledError:
            if waiting.done() and not waiting.cancelled():
                self.left()
            raise

    def answered(self, latency_s: float) -> None:
        """Called after a usable answer, which took `latency_s` seconds."""
        now = self.answered_at = self._clock()
        self._count(0, now)
        self._num += 1
        self._sum_s += latency_s
        self._num_full += self.under_way >= int(self.limit)
        took_s = now - self._began
        if (self._num >= 2 * self.limit and took_s >= WINDOW_S) or (self._num >= 8 and took_s >= LONG_S):
            self._end_window(now)
        self.left()

    def refused(self, retry_after_s: float, times: int) -> float:
        """Called after a 429, or a 503 with Retry-After; returns the seconds to wait before `left` is called.

        retry_after_s: 0 if the server did not say; times: how often this request was refused, at least 1.
        """
        self.num_refused += 1
        self._num_refused += 1
        self._count(1, self._clock())
        if self._recent[1] > REFUSED * sum(self._recent):
            self._cut()
        wait_s = retry_after_s or min(WAIT_S * 2 ** min(times - 1, 10), MAX_WAIT_S) * random.uniform(0.5, 1.0)
        return wait_s * random.uniform(1.0, 1.1)  # those that were refused together do not come back together

    def failed(self) -> None:
        """Called after a 5xx, a timeout or a broken connection."""
        self._cut()
        self.left()

    def left(self) -> None:
        """Called when a request is over of which nothing else can be learned."""
        self.under_way -= 1
        self._wake()

    def _count(self, kind: int, now: float) -> None:
        fades = math.exp((self._counted_at - now) / MEMORY_S)
        self._recent = [fades * one for one in self._recent]
        self._recent[kind] += 1
        self._counted_at = now

    def _cut(self) -> None:
        now = self._clock()
        if now - self._cut_at < COOL_S:
            return
        if now - self._cut_at >= AGAIN_S:
            self._doubles_to = self.limit / 2
            self._refused = (self.limit, now)
        self._cut_at = now
        self.limit = max(1.0, CUT * self.limit)
        self._begin_window()

    def _begin_window(self) -> None:
        self._began, self._num, self._sum_s = self._clock(), 0, 0.0
        self._num_full = self._num_refused = 0

    def _end_window(self, now: float) -> None:
        """Compares the window's answers per second and latency with the best so far, and moves the limit."""
        rate, latency_s = self._num / (now - self._began), self._sum_s / self._num
        may_grow = self._num_full >= FULL * self._num and not self._num_refused
        self._begin_window()
        if not may_grow:
            return
        if self._best is None or rate >= GAIN * self._best[0]:
            self._best = (rate, latency_s)
            self._grow(now)
            return
        # By Little's law, rate * latency requests are served at once; more of them wait in the server's queue.
        served = self._best[0] * self._best[1]
        if self.limit >= served:
            self._doubles_to = min(self._doubles_to, served)
        if latency_s > SLOWER * self._best[1] and self.limit > 1.1 * served:
            self.limit = max(1.0, 1.1 * served, self.limit / 2)
            self._best = (0.98 * self._best[0], self._best[1])  # what was best becomes outdated
        else:
            self._best = (max(rate, 0.98 * self._best[0]), self._best[1])
            self._grow(now)

    def _grow(self, now: float) -> None:
        doubles = self.limit < self._doubles_to
        limit = 2 * self.limit if doubles else self.limit + max(1.0, self.limit / 16)
        if self._refused is not None and now - self._refused[1] < PROBE_S:
            limit = max(self.limit, min(limit, 0.9 * self._refused[0]))
        self.limit = min(float(self._most), limit)

    def _wake(self) -> None:
        while self._waiting and (self._waiting[0].done() or self.under_way < int(self.limit)):
            waiting = self._waiting.popleft()
            if not waiting.done():  # else it was cancelled
                self.under_way += 1
                waiting.set_result(None)
