"""Fetch URLs: public addresses only, checked on every hop; deadlines, byte caps; one typed code per failure.

A connection goes to the very address that was checked (`resolver`), and only when the host's turn has come
(`politeness`). Proxies from the environment are not used: they would resolve unchecked.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from vlpipe.pipeline.engine.worker.guard import row_fault
from vlpipe.pipeline.errors import RowFault
from vlpipe.pipeline.service import Address
from vlpipe.stages.web.client import Client
from vlpipe.stages.web.event_loop import running_loop
from vlpipe.stages.web.limits import Limits
from vlpipe.stages.web.politeness import HostBusy, Turn, Turns, join
from vlpipe.stages.web.response import SLOW_DOWN, HttpFault, Page, Response
from vlpipe.stages.web.robots import Origins
from vlpipe.stages.web.url import Target, redirected, sendable, target_of

MAX_RULES_FILE_BYTES = 1 << 24  # of an origin's rules, where videos may have gigabytes


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one URL, and (for the log only) when and how."""

    result: Page | RowFault
    at_s: float  # Unix time of the first attempt
    seconds: float  # waiting for its turn included
    attempts: int


Refuse = Callable[[str], "RowFault | None"]
Fetch = Callable[[Sequence[str]], "list[concurrent.futures.Future[Answer]]"]


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
    """Yields `fetch(urls)`, which starts them all and returns a future for each.

    ports: host -> port on the loopback that answers for it, the one exemption from the address rules.
    passing: codes that are worth another attempt. gate: where the run's `HostGate` is. refuse: why a URL must not be
    asked for, listed or redirected to. folder: bodies are written to files there, not held in memory.
    """
    with running_loop() as loop:
        crawler = loop.run(_crawler(limits, ports, passing, gate, refuse, accept, folder))
        try:
            yield lambda urls: loop.submit_all([crawler.fetch(url) for url in urls])
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
    """Lives in the loop; at most `concurrency` requests at once, and to each host what the gate allows."""

    def __init__(
        self,
        client: Client,
        turns: Turns,
        limits: Limits,
        passing: frozenset[str],
        refuse: Refuse,
        folder: str = "",
    ) -> None:
        self._refuse, self._folder = refuse, folder
        self._client, self._turns, self._limits, self._passing = client, turns, limits, passing
        self._all = asyncio.Semaphore(limits.concurrency)
        robots, tdmrep = limits.robots == "obey", limits.tdmrep == "obey"
        self._origins = (
            Origins(self._rules, limits.product, robots=robots, tdmrep=tdmrep) if robots or tdmrep else None
        )

    async def close(self) -> None:
        self._turns.close()
        await self._client.close()

    async def fetch(self, url: str) -> Answer:
        """One URL, with retries. What is raised is a fault of the machine; all else is its answer."""
        at_s, begin = time.time(), time.monotonic()
        result: Page | RowFault = RowFault("no_url")
        for attempt in range(1, self._limits.retries + 2):
            before, result = result, await self._attempt(url)
            if isinstance(result, RowFault) and result.why == "host_busy" and attempt > 1:
                result = before  # what it answered says more
                break
            if not self._may_pass(result) or attempt > self._limits.retries:
                break
            if not (isinstance(result, HttpFault) and result.status in SLOW_DOWN):  # there the gate waits
                await asyncio.sleep(self._limits.backoff_s * 2.0 ** (attempt - 1) * random.uniform(0.5, 1.5))
        return Answer(result, at_s, time.monotonic() - begin, attempt)

    def _may_pass(self, result: Page | RowFault) -> bool:
        """Within this run: a host that wants a long rest is for a later one."""
        return isinstance(result, RowFault) and result.why in self._passing and result.why != "host_busy"

    async def _attempt(self, url: str, *, rules: bool = False) -> Page | RowFault:
        """One try, redirects followed by hand; `rules`: the URL is that of an origin's rules."""
        left_s, target = self._limits.timeout_s, Target("", "", 0)
        try:
            self._need_not_refused(url)  # as it is listed; below, as it is sent
            url = listed = sendable(url)
            for _ in range(self._limits.max_redirects + 1):
                if not rules:
                    await self._need_allowed(url)
                target = target_of(url)
                async with self._turns.turn(target.host, url) as turn, self._all:  # waiting costs it no time
                    begin, turn.led_here = time.monotonic(), listed
                    got = await self._hop(target, left_s, turn, rules)
                    left_s -= time.monotonic() - begin
                if isinstance(got, Page):
                    return got
                url = redirected(url, got)
            raise RowFault("too_many_redirects", f"more than {self._limits.max_redirects}")
        except HostBusy:
            return RowFault(
                "host_busy", f"{target.host} wants a rest longer than {self._limits.max_wait_s:g} s"
            )
        except RowFault as fault:
            return fault
        except Exception as error:  # or the batch would be lost, and everybody in it asked again
            return row_fault(error, __name__)

    async def _need_allowed(self, url: str) -> None:
        """Every URL that is about to be asked for passes here, redirects too."""
        self._need_not_refused(url)
        if self._origins:
            await self._origins.check(url)

    def _need_not_refused(self, url: str) -> None:
        fault = self._refuse(url)
        if fault is not None:
            raise fault

    async def _rules(self, url: str) -> tuple[int, bytes] | RowFault:
        """An origin's rules, fetched as carefully as anything else."""
        got = await self._attempt(url, rules=True)
        return got if isinstance(got, RowFault) else (got.status, got.body)

    async def _hop(self, target: Target, left_s: float, turn: Turn, rules: bool) -> Page | str:
        """The page, or where it redirects to."""
        max_bytes = self._limits.max_bytes
        response = Response(
            target.url,
            turn,
            self._limits,
            min(max_bytes, MAX_RULES_FILE_BYTES) if rules else max_bytes,
            rules=rules,
            folder="" if rules else self._folder,
        )
        try:
            await self._client.get(target, left_s, response)
            return response.got()
        except BaseException:
            response.drop()
            raise
