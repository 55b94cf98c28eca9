"""Fetches URLs from public addresses only, with deadlines, byte limits and a reject code for each kind of failure.

Addresses are checked for each URL and each redirect. A connection goes to exactly the address that was checked
(`address`), once the host's limits allow it (`politeness`). Proxies from the environment are not used: they would resolve
names unchecked.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from vlpipe.pipeline.engine.worker.guard import row_fault
from vlpipe.pipeline.errors import RowFault
from vlpipe.pipeline.service import Address
from vlpipe.stages.web.bodies import MEMORY_BYTES, WAITING_BYTES, Bodies, Body
from vlpipe.stages.web.client import Client
from vlpipe.stages.web.event_loop import Asked, Loop, running_loop
from vlpipe.stages.web.limits import Limits
from vlpipe.stages.web.politeness import HostBusy, Turn, Turns, join
from vlpipe.stages.web.response import SLOW_DOWN, HttpFault, Page, Response
from vlpipe.stages.web.robots import MAX_RULES_BYTES, Origins
from vlpipe.stages.web.url import Target, redirected, sendable, target_of


@dataclass(frozen=True, slots=True)
class Answer:
    """The result for one URL, and (for the log only) its timing and number of attempts."""

    result: Page | RowFault
    at_s: float  # Unix time of the first attempt
    seconds: float  # total time, including waits for the host's limits
    attempts: int


NOTHING_YET = RowFault("no_url")  # before the first attempt
Refuse = Callable[[str], "RowFault | None"]


class Fetch:
    """`fetch(urls)` starts to fetch all URLs and returns a future Answer for each, in order. Made by `fetcher`."""

    def __init__(self, loop: Loop, crawler: Crawler) -> None:
        self._loop, self._crawler = loop, crawler

    def __call__(self, urls: Sequence[str]) -> list[Asked[Answer]]:
        asked: list[Asked[Answer]] = [Asked() for _ in urls]
        fetches = [self._crawler.fetch(url, one) for url, one in zip(urls, asked, strict=True)]
        self._loop.submit_all([*zip(fetches, asked, strict=True)])
        return asked

    def want(self, asked: Sequence[Asked[Answer]]) -> None:
        """Must be called before these answers are waited for.

        Otherwise their requests may never be sent: bodies that nobody reads until then may fill the room (`web.bodies`).
        """
        self._crawler.bodies.want(asked)


@contextmanager
def fetcher(
    limits: Limits,
    ports: Mapping[str, int],
    passing: frozenset[str],
    gate: Address | None = None,
    refuse: Refuse = lambda url: None,
    *,
    accept: str = "image/*, */*;q=0.1",
    folder: str = "",
) -> Iterator[Fetch]:
    """Yields a Fetch; on exit, requests under way are cancelled and the bodies are deleted.

    ports: host -> loopback port that serves it; the only exemption from the address rules.
    passing: codes of temporary failures, which are retried. gate: address of the run's `HostGate`; None: an own one.
    refuse: called for each listed URL and redirect target, returns a RowFault if it must not be requested. accept: the
    Accept header. folder: if set, bodies are written to files there instead of being held in memory.
    """
    with running_loop() as loop:
        crawler = loop.run(_crawler(limits, ports, passing, gate, refuse, accept, folder))
        try:
            yield Fetch(loop, crawler)
        finally:
            loop.run(crawler.close())


async def _crawler(
    limits: Limits,
    ports: Mapping[str, int],
    passing: frozenset[str],
    gate: Address | None,
    refuse: Refuse,
    accept: str,
    folder: str,
) -> Crawler:
    turns = await join(gate, limits.politeness)
    return Crawler(Client(limits, ports, accept), turns, limits, passing, refuse, folder)


class Crawler:
    """Fetches URLs in the loop: at most `concurrency` requests at once, and per host as many as the HostGate allows."""

    def __init__(
        self,
        client: Client,
        turns: Turns,
        limits: Limits,
        passing: frozenset[str],
        refuse: Refuse,
        folder: str = "",
    ) -> None:
        self._refuse, self._folder, self.bodies = refuse, folder, Bodies(MEMORY_BYTES, WAITING_BYTES)
        self._client, self._turns, self._limits, self._passing = client, turns, limits, passing
        self._all = asyncio.Semaphore(limits.concurrency)
        robots, tdmrep = limits.robots == "obey", limits.tdmrep == "obey"
        self._origins = (
            Origins(self._rules, limits.product, robots=robots, tdmrep=tdmrep) if robots or tdmrep else None
        )

    async def close(self) -> None:
        """Disconnects from the HostGate, closes all connections and deletes the bodies."""
        self._turns.close()
        self._client.close()
        if self._origins:
            self._origins.close()
        self.bodies.close()

    async def fetch(self, url: str, asked: Asked[Answer]) -> Answer:
        """Fetches one URL, with retries. Failures are a RowFault in the Answer; raises only errors of the machine."""
        at_s, begin = time.time(), time.monotonic()
        result: Page | RowFault = NOTHING_YET
        for attempt in range(1, self._limits.retries + 2):
            before, result = result, await self._attempt(url, asked)
            if isinstance(result, RowFault) and result.why == "host_busy" and attempt > 1:
                result = before  # the earlier failure is more informative
                break
            if not self._is_retriable(result) or attempt > self._limits.retries:
                break
            if not (
                isinstance(result, HttpFault) and result.status in SLOW_DOWN
            ):  # the HostGate delays the next attempt
                await asyncio.sleep(self._limits.backoff_s * 2.0 ** (attempt - 1) * random.uniform(0.5, 1.5))
        return Answer(result, at_s, time.monotonic() - begin, attempt)

    def _is_retriable(self, result: Page | RowFault) -> bool:
        """Returns whether to retry within this run; host_busy is left for a later run."""
        return isinstance(result, RowFault) and result.why in self._passing and result.why != "host_busy"

    async def _attempt(self, url: str, asked: Asked[Answer] | None = None) -> Page | RowFault:
        """Returns the result of one attempt, following redirects.

        asked: the future answer; None for a robots.txt or tdmrep.json itself, which is requested whatever these files say
        and does not wait for room in `bodies`.
        """
        left_s, target = self._limits.timeout_s, Target("", "", 0)
        try:
            sent = sendable(url)
            self._need_not_refused(url)  # as listed; `_need_allowed` checks it as sent
            url = listed = sent
            for _ in range(self._limits.max_redirects + 1):
                if asked:
                    await self._need_allowed(url)
                target, got = target_of(url), None
                while got is None:
                    if asked and self.bodies.is_full_for(asked):
                        await self.bodies.room_for(asked)
                    # The waits for room, for a turn and for a request to end are not counted in `left_s`.
                    async with self._turns.turn(target.host, url) as turn, self._all:
                        if asked and self.bodies.is_full_for(asked):  # filled while this one waited
                            continue
                        begin, turn.led_here = time.monotonic(), listed
                        got = await self._hop(target, left_s, turn, rules=asked is None)
                        left_s -= time.monotonic() - begin
                if isinstance(got, Page):
                    return got
                url = redirected(url, got)
            raise RowFault("too_many_redirects", f"more than {self._limits.max_redirects} redirects")
        except HostBusy:
            return RowFault(
                "host_busy", f"{target.host} asked for a pause longer than {self._limits.max_wait_s:g} s"
            )
        except RowFault as fault:
            return fault
        except Exception as error:  # raising would lose the batch, and all its URLs would be requested again
            return row_fault(error, __name__)

    async def _need_allowed(self, url: str) -> None:
        """Raises RowFault if a URL must not be requested; called for listed URLs and redirect targets."""
        self._need_not_refused(url)
        if self._origins:
            await self._origins.check(url)

    def _need_not_refused(self, url: str) -> None:
        fault = self._refuse(url)
        if fault is not None:
            raise fault

    async def _rules(self, url: str) -> tuple[int, bytes] | RowFault:
        """Returns (status, body) of a robots.txt or tdmrep.json, fetched with the address checks and limits of any URL."""
        got = await self._attempt(url)
        return got if isinstance(got, RowFault) else (got.status, got.body)

    async def _hop(self, target: Target, left_s: float, turn: Turn, *, rules: bool) -> Page | str:
        """Requests one URL, within `left_s` seconds; returns the page, or the location it redirects to. Raises RowFault."""
        response = Response(
            target.url,
            turn,
            self._limits,
            MAX_RULES_BYTES if rules else self._limits.max_bytes,
            Body(self.bodies),
            rules=rules,
            folder="" if rules else self._folder,
        )
        try:
            await self._client.get(target, left_s, response)
            # a file may have gigabytes, which are searched for an opt-out while others are fetched
            return await asyncio.to_thread(response.got) if self._folder and not rules else response.got()
        except BaseException:
            response.drop()
            raise
