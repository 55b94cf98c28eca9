"""Bodies of responses that wait: in memory up to a limit, then in a file; none is lost, and no row waits for ever."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from vlpipe.stages.web.bodies import BLOCK_BYTES, Bodies, Body
from vlpipe.stages.web.event_loop import Asked


def run(go: Callable[[Bodies], Awaitable[Any]], memory: int = 1000, waiting: int = 10**9) -> Any:
    async def main() -> Any:
        bodies = Bodies(memory, waiting)
        try:
            return await asyncio.wait_for(go(bodies), 10)
        finally:
            bodies.close()

    return asyncio.run(main())


def filled(bodies: Bodies, data: bytes, piece: int = 5000) -> Body:
    body = Body(bodies)
    for start in range(0, len(data), piece):
        body.add(data[start : start + piece])
    body.end()
    return body


@pytest.mark.parametrize("memory", [0, 1, 30_000, 200_000, 10**9])
def test_bodies_come_back_as_they_were_added(memory: int) -> None:
    """Grown in turn, some closed in between, whose blocks of the file others take."""
    draw = random.Random(memory)
    sizes = [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES + 17] * 4

    async def go(bodies: Bodies) -> None:
        for _ in range(3):
            data = [draw.randbytes(size) for size in sizes]
            made = [Body(bodies) for _ in data]
            for start in range(0, max(sizes), 40_000):
                for body, one in zip(made, data, strict=True):
                    body.add(one[start : start + 40_000])
            for body in made:
                body.end()
            for k in draw.sample(range(len(made)), len(made)):
                assert made[k].read() == data[k]
                assert made[k].read() == data[k]
                made[k].close()
                made[k].close()

    run(go, memory)


def test_memory_has_a_limit_and_the_file_uses_its_blocks_again() -> None:
    async def go(bodies: Bodies) -> tuple[int, int, int]:
        most = 0
        for _ in range(20):
            three = [filled(bodies, bytes(100_000)) for _ in range(3)]
            most = max(most, bodies._in_memory)
            for body in three[:2]:
                body.close()
            three[2].close()
        return most, bodies._num_blocks, bodies._waiting

    assert run(go, memory=150_000) == (100_000, 0, 0)


def test_a_body_that_nobody_holds_gives_its_room_back() -> None:
    async def go(bodies: Bodies) -> int:
        body = filled(bodies, bytes(100_000))
        del body
        gc.collect()
        return bodies._waiting

    assert run(go) == 0


def test_rows_wait_while_too_many_bytes_do_and_go_on_when_half_is_free() -> None:
    async def go(bodies: Bodies) -> list[bool]:
        first, second = filled(bodies, bytes(60)), filled(bodies, bytes(60))
        rows: list[Asked[int]] = [Asked() for _ in range(3)]
        waiting = [asyncio.ensure_future(bodies.room_for(row)) for row in rows]
        await asyncio.sleep(0)
        seen = [all(not one.done() for one in waiting)]
        bodies.want(rows[1:2])
        await asyncio.sleep(0.01)
        seen.append([one.done() for one in waiting] == [False, True, False])
        first.close()
        await asyncio.sleep(0.01)
        seen.append([one.done() for one in waiting] == [False, True, False])
        second.close()
        await asyncio.gather(*waiting)
        return seen

    assert run(go, waiting=100) == [True, True, True]
