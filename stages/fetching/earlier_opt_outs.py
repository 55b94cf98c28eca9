"""Opt-outs for an external fetcher: ask the run's gate for known ones before fetching, report new ones afterwards."""

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
    """Requests turns and returns them at once: they limit nothing, but the gate refuses URLs that have opted out."""

    def __init__(self, loop: Loop, turns: Turns) -> None:
        self._loop, self._turns = loop, turns

    def check(self, urls: Sequence[str]) -> list[RowFault | None]:
        """Returns, per listed URL, a RowFault (opt_out) with the evidence if it has opted out, else None."""
        return self._loop.run(self._all([(url, None) for url in urls]))

    def note(self, said: Mapping[str, str]) -> None:
        """Record opt-outs (URL -> evidence); returns when they are on disk in the root."""
        self._loop.run(self._all([*said.items()]))

    async def _all(self, pairs: Sequence[tuple[str, str | None]]) -> list[RowFault | None]:
        return await asyncio.gather(*(self._one(*pair) for pair in pairs))

    async def _one(self, listed: str, evidence: str | None) -> RowFault | None:
        try:
            url = sendable(listed)
        except RowFault:  # it is not requested anyway
            return None
        try:
            async with self._turns.turn(split_origin(url)[0], url) as turn:
                turn.opted_out = evidence
        except RowFault as fault:
            return fault
        return None


@contextmanager
def recalling(gate: Address | None) -> Iterator[Recall]:
    """Connect to the run's host gate (`web.politeness.HostGate`), or start one in this process if `gate` is None.

    Yields a Recall, which looks up earlier opt-outs and records new ones.
    """
    with running_loop() as loop:
        turns = loop.run(join(gate, ALONE))
        try:
            yield Recall(loop, turns)
        finally:
            loop.run(_close(turns))


async def _close(turns: Turns) -> None:
    turns.close()
