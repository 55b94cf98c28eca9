"""Fetch URLs: public addresses only, checked on every hop; deadlines, byte caps; one typed code per failure.

A connection goes to the very address that was checked (the resolver both looks up and checks), so a name
cannot change its meaning in between. Proxies from the environment are not used: they would resolve unchecked.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import http.client
import socket
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from weakref import WeakValueDictionary

import aiohttp
import yarl
from aiohttp.abc import AbstractResolver, ResolveResult

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.ingest.address import is_public
from vlpipe.stages.ingest.loop import running_loop
from vlpipe.stages.ingest.serve import LOOPBACK
from vlpipe.stages.ingest.url import redirected, sendable, without_secrets

REDIRECTS = frozenset({301, 302, 303, 307, 308})
DNS_CACHE_S = 300
KEEP_ALIVE_S = 1.0  # many hosts: longer, and idle connections use up the file descriptors


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
    retries: int
    backoff_s: float
    user_agent: str


@dataclass(frozen=True, slots=True)
class Page:
    """What a URL led to."""

    status: int
    url: str  # the last one, without secrets
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one URL, and (for the log only) when and how."""

    result: Page | RowFault
    at_s: float  # Unix time of the first attempt
    seconds: float  # waiting for its turn included
    attempts: int


class HttpFault(RowFault):
    """An answer that is no image; `retry_after_s` is what the server asks us to wait."""

    def __init__(self, status: int, retry_after: str) -> None:
        super().__init__(f"http_{status}", http.client.responses.get(status, ""))
        self.retry_after_s = float(retry_after) if retry_after.isdecimal() else 0.0


Fetch = Callable[[Sequence[str]], "list[concurrent.futures.Future[Answer]]"]


@contextmanager
def fetcher(limits: Limits, ports: Mapping[str, int], passing: frozenset[str]) -> Iterator[Fetch]:
    """Yields `fetch(urls)`, which starts them all and returns a future for each.

    ports: host -> port on the loopback that answers for it, the one exemption from the address rules.
    passing: codes that are worth another attempt.
    """
    with running_loop() as loop:
        crawler = loop.run(_crawler(limits, ports, passing))
        try:
            yield lambda urls: [loop.submit(crawler.fetch(url)) for url in urls]
        finally:
            loop.run(crawler.session.close())


async def _crawler(limits: Limits, ports: Mapping[str, int], passing: frozenset[str]) -> Crawler:
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
            "Accept": "image/*, */*;q=0.1",
            "Accept-Encoding": "identity",
        },
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
    )
    return Crawler(session, limits, passing)


class CheckingResolver(AbstractResolver):
    """Looks a name up, and refuses it when one of its addresses is not public."""

    def __init__(self, ports: Mapping[str, int]) -> None:
        self._ports = {host.lower(): port for host, port in ports.items()}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        if host in self._ports:
            return [_resolved(host, LOOPBACK, self._ports[host], socket.AF_INET)]
        loop = asyncio.get_running_loop()
        infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, family=family)
        found = dict.fromkeys((str(info[4][0]), info[0]) for info in infos)
        for address, _ in found:
            _need_public(address, host)
        return [_resolved(host, address, port, kind) for address, kind in found]

    async def close(self) -> None:
        pass


def _resolved(name: str, address: str, port: int, family: int) -> ResolveResult:
    return ResolveResult(
        hostname=name, host=address, port=port, family=family, proto=0, flags=socket.AI_NUMERICHOST
    )


def _need_public(address: str, host: str) -> None:
    if not is_public(address):
        raise RowFault("forbidden_address", f"{host}: {address} is no public address")


class Crawler:
    """Lives in the loop; at most `concurrency` requests at once, and `per_host` to the same host."""

    def __init__(self, session: aiohttp.ClientSession, limits: Limits, passing: frozenset[str]) -> None:
        self.session, self._limits, self._passing = session, limits, passing
        self._all = asyncio.Semaphore(limits.concurrency)
        self._hosts: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def fetch(self, url: str) -> Answer:
        """One URL, with retries; never raises a RowFault."""
        at_s, begin = time.time(), time.monotonic()
        attempt = 0
        while True:
            attempt += 1
            result = await self._attempt(url)
            wait_s = self._wait_s(result, attempt)
            if wait_s is None:
                return Answer(result, at_s, time.monotonic() - begin, attempt)
            await asyncio.sleep(wait_s)

    def _wait_s(self, result: Page | RowFault, attempt: int) -> float | None:
        """How long to wait before the next attempt; None: there is none."""
        if isinstance(result, Page) or result.why not in self._passing or attempt > self._limits.retries:
            return None
        wanted_s = result.retry_after_s if isinstance(result, HttpFault) else 0.0
        if wanted_s > self._limits.timeout_s:
            return None  # so long belongs in a later run
        return max(wanted_s, self._limits.backoff_s * 2.0 ** (attempt - 1))

    async def _attempt(self, url: str) -> Page | RowFault:
        left_s = self._limits.timeout_s
        try:
            url = sendable(url)
            for _ in range(self._limits.max_redirects + 1):
                async with self._turn(yarl.URL(url, encoded=True).host or ""):
                    begin = time.monotonic()
                    got = await self._hop(url, left_s)
                    left_s -= time.monotonic() - begin
                if isinstance(got, Page):
                    return got
                url = redirected(url, got)
            raise RowFault("too_many_redirects", f"more than {self._limits.max_redirects}")
        except RowFault as fault:
            return fault

    @asynccontextmanager
    async def _turn(self, host: str) -> AsyncIterator[None]:
        """Waiting here costs the URL none of its time."""
        gate = self._hosts.setdefault(host, asyncio.Semaphore(self._limits.per_host))
        async with gate, self._all:
            yield

    async def _hop(self, url: str, left_s: float) -> Page | str:
        """The page, or where it redirects to."""
        target = yarl.URL(url, encoded=True)
        host = target.host or ""
        with _typed(host, self._limits):
            if _is_literal(host):  # aiohttp does not ask the resolver for these
                _need_public(host, host)
            async with (
                asyncio.timeout(left_s),
                self.session.get(target, allow_redirects=False) as response,
            ):
                if response.status in REDIRECTS and "Location" in response.headers:
                    return response.headers["Location"]
                if response.status != 200:
                    raise HttpFault(response.status, response.headers.get("Retry-After", ""))
                body = await _body(response, self._limits.max_bytes)
                return Page(response.status, without_secrets(url), body)


def _is_literal(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


async def _body(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """The whole body, decompressed; never more than `max_bytes` of it, whatever the headers say."""
    if (response.content_length or 0) > max_bytes:
        raise RowFault("too_large", f"{response.content_length} bytes, the limit is {max_bytes}")
    encoding = response.headers.get("Content-Encoding", "identity").lower()
    if encoding not in ("identity", "", "gzip", "x-gzip", "deflate"):
        raise RowFault("bad_response", f"content encoding {encoding[:20]!r}, none was asked for")
    unzip = zlib.decompressobj(wbits=47) if "gzip" in encoding or encoding == "deflate" else None
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += unzip.decompress(chunk, max_bytes + 1 - len(body)) if unzip else chunk
        if len(body) > max_bytes:
            raise RowFault("too_large", f"more than {max_bytes} bytes")
    if unzip and not unzip.eof:
        raise RowFault("disconnected", "the compressed body ends early")
    return bytes(body)


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
