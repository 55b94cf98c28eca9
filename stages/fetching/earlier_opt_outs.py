"""Opt-outs for an external fetcher: looks up known ones in the run's gate before a fetch, records new ones afterwards."""

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
)  # so loose that they limit nothing


class Recall:
    """Looks up and records opt-outs with the run's gate (`web.politeness.HostGate`).

    A URL is looked up by requesting a turn, the permission to send a request, which the gate refuses if the URL has opted
    out. Turns are returned at once, so no request waits. URLs that cannot be sent are not looked up.
    """

    def __init__(self, loop: Loop, turns: Turns) -> None:
        self._loop, self._turns = loop, turns

    def check(self, urls: Sequence[str]) -> list[RowFault | None]:
        """Returns, per listed URL, a RowFault (opt_out) with the evidence if it has opted out, else None."""
        return self._loop.run(self._all([(url, None) for url in urls]))

    def note(self, said: Mapping[str, str]) -> None:
        """Records opt-outs (listed URL -> evidence); returns when they are stored in the root."""
        self._loop.run(self._all([*said.items()]))

    async def _all(self, pairs: Sequence[tuple[str, str | None]]) -> list[RowFault | None]:
        return await asyncio.gather(*(self._one(*pair) for pair in pairs))

    async def _one(self, listed: str, evidence: str | None) -> RowFault | None:
        try:
            url = sendable(listed)
        except RowFault:  # not a valid URL, so it is never requested
            return None
        try:
            async with self._turns.turn(split_origin(url)[0], url) as turn:
                turn.opted_out = evidence
        except RowFault as fault:
            return fault
        return None


@contextmanager
def recalling(gate: Address | None) -> Iterator[Recall]:
    """Yields a Recall, connected to the run's gate (`web.politeness.HostGate`) or, if `gate` is None, to a local one."""
    with running_loop() as loop:
        turns = loop.run(join(gate, ALONE))
        try:
            yield Recall(loop, turns)
        finally:
            loop.run(_close(turns))


async def _close(turns: Turns) -> None:
    turns.close()
