"""How many requests are under way, with servers of several kinds. Their time is simulated, so nothing waits."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from vlpipe.stages.endpoint.pace import Pace

MOST = 256


class Simulated:
    """Time that passes when everything waits, and a server in it. Returns of `serve`: (status, seconds until it answers)."""

    def __init__(self, serve: Callable[[Simulated], tuple[int, float]]) -> None:
        self.now, self.under_way = 0.0, 0
        self.answered: list[float] = []
        self.refused: list[float] = []
        self._serve = serve
        self._events: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()

    async def sleep(self, seconds: float) -> None:
        waiting = asyncio.get_running_loop().create_future()
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), waiting))
        await waiting

    async def ask(self, pace: Pace) -> None:
        times = 0
        await pace.turn()
        while True:
            self.under_way += 1
            began = self.now
            status, seconds = self._serve(self)
            await self.sleep(seconds)
            self.under_way -= 1
            if status == 200:
                self.answered.append(self.now)
                pace.answered(self.now - began)
                return
            if status == 500:
                pace.failed()
            else:
                times += 1
                self.refused.append(self.now)
                await self.sleep(pace.refused(1.0, times))
                pace.left()
            await pace.turn(True)

    async def run(self, num: int, until_s: float, kind: type[Pace] = Pace) -> Pace:
        pace = kind(MOST, lambda: self.now)
        tasks = [asyncio.create_task(self.ask(pace)) for _ in range(num)]
        while self.now < until_s:
            for _ in range(8):
                await asyncio.sleep(0)
            if not self._events:
                break
            self.now, _, waiting = heapq.heappop(self._events)
            if not waiting.done():
                waiting.set_result(None)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return pace


def slots(num: int, latency_s: float) -> Any:
    """A server that works on `num` requests at once; the others wait in its queue."""
    free_at = [0.0] * num

    def serve(it: Simulated) -> tuple[int, float]:
        start = max(it.now, heapq.heappop(free_at))
        heapq.heappush(free_at, start + latency_s)
        return 200, start + latency_s - it.now

    return serve


def refusing(num: int, latency_s: float) -> Any:
    """A server that answers 429 when `num` requests are under way."""
    return lambda it: (200, latency_s) if it.under_way <= num else (429, 0.001)


def per_second(rate: float, burst: float, latency_s: float) -> Any:
    tokens, at = [burst], [0.0]

    def serve(it: Simulated) -> tuple[int, float]:
        tokens[0] = min(burst, tokens[0] + (it.now - at[0]) * rate)
        at[0] = it.now
        if tokens[0] < 1:
            return 429, 0.001
        tokens[0] -= 1
        return 200, latency_s

    return serve


@pytest.mark.parametrize(
    ("server", "capacity", "share"),
    [
        (slots(64, 0.05), 1280, 0.95),
        (slots(8, 2.0), 4, 0.9),
        (refusing(24, 0.1), 240, 0.85),
        (per_second(100, 20, 0.1), 100, 0.85),
        (per_second(20, 20, 0.5), 20, 0.85),
    ],
)
def test_a_server_is_used_to_its_capacity(server: Any, capacity: float, share: float) -> None:
    seconds = 30.0 if capacity > 10 else 200.0
    num = int(min(capacity * seconds * 1.2, 12_000))
    it = Simulated(server)
    asyncio.run(it.run(num, min(seconds, 0.9 * num / capacity)))
    start = 0.1 * it.now  # it learns
    assert sum(at > start for at in it.answered) >= share * capacity * (it.now - start)
    assert len(it.refused) <= 0.25 * len(it.answered)


def test_requests_do_not_pile_up_in_the_servers_queue() -> None:
    it = Simulated(slots(16, 0.5))
    pace = asyncio.run(it.run(4_000, 60.0))
    assert 16 <= pace.limit <= 48
    assert len(it.answered) >= 0.95 * 32 * it.now - 16


def test_a_failing_server_is_asked_less_and_more_again_when_it_is_well() -> None:
    it = Simulated(lambda it: (500, 0.1) if 3 < it.now < 8 else (200, 0.2))
    seen: list[float] = []
    paces: list[Pace] = []

    class Watched(Pace):
        def failed(self) -> None:
            super().failed()
            seen.append(self.limit)

    async def run() -> None:
        paces.append(await it.run(8_000, 14.0, Watched))

    asyncio.run(run())
    assert min(seen) <= 0.35 * MOST  # five cuts, one a second
    assert paces[0].limit > 2 * min(seen)


def test_a_storm_of_429_leaves_few_requests_and_no_request_is_lost() -> None:
    calm = refusing(1000, 0.05)
    it = Simulated(lambda it: (429, 0.001) if it.now < 20 else calm(it))
    asyncio.run(it.run(500, 60.0))
    assert len(it.answered) == 500
    in_storm = [at for at in it.refused if 10 < at < 20]
    assert len(in_storm) <= 30


def test_a_cancelled_wait_does_not_keep_a_place() -> None:
    async def run() -> int:
        pace = Pace(1)
        await pace.turn()
        waiting = [asyncio.create_task(pace.turn()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        pace.left()
        waiting[1].cancel()
        await asyncio.gather(waiting[0], waiting[1], return_exceptions=True)
        await asyncio.wait_for(waiting[2], 1)
        return pace.under_way

    assert asyncio.run(run()) == 1
