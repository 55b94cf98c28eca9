"""Who said no, for a fetcher that is not ours: what the run's gate knows before it asks, and must know afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from vlpipe.pipeline.errors import RowFault
from vlpipe.pipeline.service import Address
from vlpipe.stages.web.event_loop import Loop, running_loop
from vlpipe.stages.web.politeness import Politeness, Turns, join
from vlpipe.stages.web.robots import split_origin
from vlpipe.stages.web.url import sendable

ALONE = Politeness(
    per_host=1000, host_interval_s=0.0, max_wait_s=0.0, backoff_s=0.0, lease_s=60.0
)  # outside a run


class Recall:
    """Takes turns and gives them back at once: they limit nobody, but the gate refuses a URL that has said no."""

    def __init__(self, loop: Loop, turns: Turns) -> None:
        self._loop, self._turns = loop, turns

    def check(self, urls: Sequence[str]) -> list[RowFault | None]:
        """For each listed URL None, or RowFault opt_out with what it said."""
        return self._loop.run(self._all([(url, None) for url in urls]))

    def note(self, said: Mapping[str, str]) -> None:
        """URL -> its words; returns when the root has them."""
        self._loop.run(self._all([*said.items()]))

    async def _all(self, pairs: Sequence[tuple[str, str | None]]) -> list[RowFault | None]:
        return await asyncio.gather(*(self._one(*pair) for pair in pairs))

    async def _one(self, listed: str, evidence: str | None) -> RowFault | None:
        try:
            url = sendable(listed)
        except RowFault:  # nobody asks for it
            return None
        try:
            async with self._turns.turn(split_origin(url)[0], url) as turn:
                turn.opted_out = evidence
        except RowFault as fault:
            return fault
        return None


@contextmanager
def recalling(gate: Address | None) -> Iterator[Recall]:
    with running_loop() as loop:
        turns = loop.run(join(gate, ALONE))
        try:
            yield Recall(loop, turns)
        finally:
            loop.run(_close(turns))


async def _close(turns: Turns) -> None:
    turns.close()
