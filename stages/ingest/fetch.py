"""Fetch URLs: public addresses only, checked on every hop; deadlines, byte caps; one typed code per failure.

A connection goes to the very address that was checked (`resolver`), and only when the host's turn has come
(`politeness`). Proxies from the environment are not used: they would resolve unchecked.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import http.client
import os
import random
import tempfile
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from ipaddress import ip_address
from typing import Literal

import aiohttp
import yarl

from vlpipe.pipeline.errors import RowFault
from vlpipe.pipeline.shared import Address
from vlpipe.stages.ingest.loop import running_loop
from vlpipe.stages.ingest.optout import opted_out
from vlpipe.stages.ingest.politeness import HostBusy, Politeness, Turn, Turns, join
from vlpipe.stages.ingest.resolver import DNS_CACHE_S, CheckingResolver, need_public
from vlpipe.stages.ingest.robots import Origins
from vlpipe.stages.ingest.url import redirected, sendable, without_secrets

REDIRECTS = frozenset({301, 302, 303, 307, 308})
SLOW_DOWN = frozenset({429, 503})  # the host, not only this URL
KEEP_ALIVE_S = 1.0  # many hosts: longer, and idle connections use up the file descriptors
A_YEAR_S = 365 * 86400.0
MAX_RULES_FILE_BYTES = 1 << 24  # of an origin's rules, where videos may have gigabytes


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much is asked of others and taken from them; the stage has the defaults."""

    connect_timeout_s: float
    read_timeout_s: float  # without a byte
    timeout_s: float  # one attempt, all redirects and the whole body
    max_bytes: int
    max_redirects: int
    concurrency: int
    per_host: int
    host_interval_s: float
    max_wait_s: float
    retries: int
    backoff_s: float
    user_agent: str
    bot: str
    opt_out: tuple[str, ...]
    robots: Literal["ignore", "obey"]
    tdmrep: Literal["ignore", "obey"]

    @property
    def product(self) -> str:
        """The name we go by in rules for bots."""
        return self.bot or self.user_agent.partition("/")[0].strip()

    @property
    def politeness(self) -> Politeness:
        return Politeness(
            per_host=self.per_host,
            host_interval_s=self.host_interval_s,
            max_wait_s=self.max_wait_s,
            backoff_s=self.backoff_s,
            lease_s=2 * self.timeout_s,  # a turn is one hop, and all hops together have `timeout_s`
        )


@dataclass(frozen=True, slots=True)
class Page:
    """What a URL led to."""

    status: int
    url: str  # the last one, without secrets
    body: bytes
    file: str = ""  # instead of `body`: where it was written to


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one URL, and (for the log only) when and how."""

    result: Page | RowFault
    at_s: float  # Unix time of the first attempt
    seconds: float  # waiting for its turn included
    attempts: int


class HttpFault(RowFault):
    """An answer that is no image."""

    def __init__(self, status: int) -> None:
        super().__init__(f"http_{status}", http.client.responses.get(status, ""))
        self.status = status


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
    connector = aiohttp.TCPConnector(
        resolver=CheckingResolver(ports),
        limit=0,  # `Crawler` has its own, and waiting there is not in the deadlines
        keepalive_timeout=KEEP_ALIVE_S,
        ttl_dns_cache=DNS_CACHE_S,
    )
    session = aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(
            total=None, sock_connect=limits.connect_timeout_s, sock_read=limits.read_timeout_s
        ),
        headers={
            "User-Agent": limits.user_agent,
            "Accept": accept,
            "Accept-Encoding": "identity",
        },
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
    )
    return Crawler(session, turns, limits, passing, refuse, folder)


class Crawler:
    """Lives in the loop; at most `concurrency` requests at once, and to each host what the gate allows."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        turns: Turns,
        limits: Limits,
        passing: frozenset[str],
        refuse: Refuse,
        folder: str = "",
    ) -> None:
        self._refuse, self._folder = refuse, folder
        self._session, self._turns, self._limits, self._passing = session, turns, limits, passing
        self._all = asyncio.Semaphore(limits.concurrency)
        robots, tdmrep = limits.robots == "obey", limits.tdmrep == "obey"
        self._origins = (
            Origins(self._rules, limits.product, robots=robots, tdmrep=tdmrep) if robots or tdmrep else None
        )

    async def close(self) -> None:
        self._turns.close()
        await self._session.close()

    async def fetch(self, url: str) -> Answer:
        """One URL, with retries; never raises a RowFault."""
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
        left_s = self._limits.timeout_s
        try:
            self._need_not_refused(url)  # as it is listed; below, as it is sent
            url = sendable(url)
            for _ in range(self._limits.max_redirects + 1):
                if not rules:
                    await self._need_allowed(url)
                host = yarl.URL(url, encoded=True).host or ""
                async with (
                    self._turns.turn(host, url) as turn,
                    self._all,
                ):  # waiting costs the URL none of its time
                    begin = time.monotonic()
                    got = await self._hop(url, left_s, turn, rules)
                    left_s -= time.monotonic() - begin
                if isinstance(got, Page):
                    return got
                url = redirected(url, got)
            raise RowFault("too_many_redirects", f"more than {self._limits.max_redirects}")
        except HostBusy:
            return RowFault("host_busy", f"{host} wants a rest longer than {self._limits.max_wait_s:g} s")
        except RowFault as fault:
            return fault

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

    async def _hop(self, url: str, left_s: float, turn: Turn, rules: bool) -> Page | str:
        """The page, or where it redirects to."""
        target = yarl.URL(url, encoded=True)
        host = target.host or ""
        with _typed(host, self._limits):
            if _is_literal(host):  # aiohttp does not ask the resolver for these
                need_public(host, host)
            async with (
                asyncio.timeout(left_s),
                self._session.get(target, allow_redirects=False) as response,
            ):
                redirects = response.status in REDIRECTS and "Location" in response.headers
                if response.status in SLOW_DOWN:
                    turn.struck, turn.wanted_s = True, retry_after_s(response.headers.get("Retry-After", ""))
                if not (redirects or response.status == 200):
                    raise HttpFault(response.status)
                if not rules:
                    self._need_consent(response, turn)
                if redirects:
                    return response.headers["Location"]
                shown = without_secrets(url)
                if self._folder and not rules:
                    file = await _saved(response, self._limits.max_bytes, self._folder)
                    return Page(response.status, shown, b"", file)
                max_bytes = self._limits.max_bytes
                body = await _body(response, min(max_bytes, MAX_RULES_FILE_BYTES) if rules else max_bytes)
                return Page(response.status, shown, body)

    def _need_consent(self, response: aiohttp.ClientResponse, turn: Turn) -> None:
        """Before a byte of the body is read; the gate lets nobody of this run ask again."""
        evidence = opted_out(response.headers, self._limits.product, self._limits.opt_out)
        if evidence is not None:
            turn.opted_out = evidence
            raise RowFault("opt_out", evidence)


def retry_after_s(value: str) -> float:
    """Seconds to wait by a Retry-After header: a number of them, or an HTTP date; 0 for anything else."""
    value = value.strip()
    if value.isascii() and value.isdecimal():
        return min(float(value[:12]), A_YEAR_S)
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return min(max((at - datetime.now(UTC)).total_seconds(), 0.0), A_YEAR_S)


@lru_cache(maxsize=100_000)
def _is_literal(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


async def _body(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    return b"".join([piece async for piece in _pieces(response, max_bytes)])


async def _saved(response: aiohttp.ClientResponse, max_bytes: int, folder: str) -> str:
    """The path of a file with the whole body; none is left when it does not come whole."""
    handle, path = tempfile.mkstemp(dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            async for piece in _pieces(response, max_bytes):
                file.write(piece)
    except BaseException:
        os.unlink(path)
        raise
    return path


async def _pieces(response: aiohttp.ClientResponse, max_bytes: int) -> AsyncIterator[bytes]:
    """The whole body, decompressed; never more than `max_bytes` of it, whatever the headers say."""
    if (response.content_length or 0) > max_bytes:
        raise RowFault("too_large", f"{response.content_length} bytes, the limit is {max_bytes}")
    encoding = response.headers.get("Content-Encoding", "identity").lower()
    if encoding not in ("identity", "", "gzip", "x-gzip", "deflate"):
        raise RowFault("bad_response", f"content encoding {encoding[:20]!r}, none was asked for")
    unzip = zlib.decompressobj(wbits=47) if "gzip" in encoding or encoding == "deflate" else None
    num_bytes = 0
    async for chunk in response.content.iter_any():
        piece = unzip.decompress(chunk, max_bytes + 1 - num_bytes) if unzip else chunk
        num_bytes += len(piece)
        if num_bytes > max_bytes:
            raise RowFault("too_large", f"more than {max_bytes} bytes")
        yield piece
    if unzip and not unzip.eof:
        raise RowFault("disconnected", "the compressed body ends early")


@contextmanager
def _typed(host: str, limits: Limits) -> Iterator[None]:
    """Network errors as RowFaults. Details name no port and no time: they are the same on every run."""
    try:
        yield
    except RowFault:
        raise
    except aiohttp.ConnectionTimeoutError as error:
        raise RowFault("timeout", f"{host}: no connection within {limits.connect_timeout_s:g} s") from error
    except aiohttp.SocketTimeoutError as error:
        raise RowFault("timeout", f"{host}: no byte for {limits.read_timeout_s:g} s") from error
    except TimeoutError as error:
        raise RowFault("timeout", f"{host}: not done after {limits.timeout_s:g} s") from error
    except aiohttp.ClientSSLError as error:
        raise RowFault("tls", f"{host}: {_reason(error)}") from error
    except aiohttp.ClientConnectorDNSError as error:
        raise RowFault("dns", f"{host}: {_reason(error)}") from error
    except aiohttp.ClientConnectorError as error:
        raise RowFault("connect", f"{host}: {_reason(error)}") from error
    except (aiohttp.ClientPayloadError, aiohttp.ClientConnectionError) as error:
        raise RowFault("disconnected", f"{host} hung up before the end") from error
    except (aiohttp.ClientError, zlib.error) as error:
        raise RowFault("bad_response", f"{host}: {type(error).__name__}") from error


def _reason(error: aiohttp.ClientConnectorError) -> str:
    return type(error.os_error).__name__ if error.os_error.errno is None else _short(error.os_error)


def _short(error: OSError) -> str:
    text = error.strerror or type(error).__name__
    return text.partition(" (")[0].partition(" [")[0]
