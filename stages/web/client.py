"""HTTP/1.1 GET over libcurl, many at a time in one asyncio loop; each address is checked where its socket is made.

Nothing is taken from the environment (proxies, netrc), no cookie is kept, no redirect followed: that is the caller's.
Of a 7 KB image libcurl takes 0.048 ms of CPU, aiohttp took 0.090; of 48 KB 0.096 and 0.187 (64 connections, bare clients).
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
from collections.abc import Mapping
from typing import Any, Protocol

import pycurl

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.common.loopback import LOOPBACK
from vlpipe.stages.web.address import is_literal, is_public
from vlpipe.stages.web.headers import Headers
from vlpipe.stages.web.limits import Limits
from vlpipe.stages.web.resolver import CheckingResolver, forbidden
from vlpipe.stages.web.url import Target

TICK_S = 0.05  # how late a deadline may be noticed
KEEP_ALIVE_S = 10
DRAIN_BYTES = 1 << 14  # a body nobody wants is read over, if so small: the connection serves again
BUFFER_BYTES = 1 << 16
STATUS = re.compile(rb"HTTP/[0-9.]+ +([0-9]{3})(?![0-9])")
TLS_CODES = frozenset(
    {
        pycurl.E_SSL_CONNECT_ERROR,
        pycurl.E_SSL_CERTPROBLEM,
        pycurl.E_SSL_CIPHER,
        pycurl.E_PEER_FAILED_VERIFICATION,
        pycurl.E_SSL_ISSUER_ERROR,
        pycurl.E_SSL_INVALIDCERTSTATUS,
        pycurl.E_SSL_CACERT_BADFILE,
    }
)
HUNG_UP_CODES = frozenset(
    {pycurl.E_GOT_NOTHING, pycurl.E_PARTIAL_FILE, pycurl.E_RECV_ERROR, pycurl.E_SEND_ERROR}
)


class Reply(Protocol):
    """Who gets a response as it comes. What they raise ends the request and comes out of `Client.get`."""

    def head(self, status: int, headers: Headers) -> bool:
        """Before a byte of the body: whether it is wanted."""

    def piece(self, data: bytes) -> None:
        """The next bytes of it."""


class Client:
    """Lives in the running loop; how many requests run at once is the caller's affair.

    ports: host -> port on the loopback that answers for it, the one exemption from the address rules.
    """

    def __init__(self, limits: Limits, ports: Mapping[str, int], accept: str) -> None:
        self._limits, self._accept = limits, accept
        self._ports = {host.lower(): port for host, port in ports.items()}
        self._resolver = CheckingResolver()
        self._multi = pycurl.AsyncCurlMulti()
        self._multi.setopt(pycurl.M_MAXCONNECTS, limits.concurrency)  # idle ones keep file descriptors
        self._free: list[_Transfer] = []
        self._running: set[_Transfer] = set()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    async def get(self, target: Target, left_s: float, reply: Reply) -> None:
        """One request, within `left_s`.

        RowFault: timeout, dns, forbidden_address, connect, tls, disconnected, bad_response, and what `reply` raises.
        """
        deadline = self._loop.time() + left_s
        port = self._ports.get(target.host)
        addresses = () if port else await self._addresses(target.host, left_s)
        transfer = self._free.pop() if self._free else _Transfer(self._limits, self._accept)
        self._running.add(transfer)
        if self._timer is None:
            self._timer = self._loop.call_later(TICK_S, self._look)
        try:
            await transfer.run(self._multi, target, addresses, port, deadline, reply)
        except asyncio.CancelledError:  # libcurl lets go of it with the loop's next turn
            self._running.discard(transfer)
            raise
        except BaseException:
            self._let_go(transfer)
            raise
        self._let_go(transfer)

    def _let_go(self, transfer: _Transfer) -> None:
        self._running.discard(transfer)
        self._free.append(transfer)

    async def _addresses(self, host: str, left_s: float) -> tuple[str, ...]:
        if is_literal(host):
            if not is_public(host):
                raise RowFault(*forbidden(host, host))
            return ()
        try:
            async with asyncio.timeout(left_s):
                return await self._resolver.addresses(host)
        except TimeoutError:
            raise _not_done(host, self._limits) from None

    def _look(self) -> None:
        """Who is late?"""
        now = self._loop.time()
        for transfer in self._running:
            transfer.end_if_late(self._multi, now)
        self._timer = self._loop.call_later(TICK_S, self._look) if self._running else None

    async def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        await self._multi.aclose()


class _Transfer:
    """A handle of libcurl, for one request after the other."""

    def __init__(self, limits: Limits, accept: str) -> None:
        self._limits = limits
        self._curl: Any = pycurl.Curl()
        headers = [f"Accept: {accept}", "Accept-Encoding: identity"]
        for option, value in (
            (pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS),
            (pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1),
            (pycurl.PROXY, ""),  # what the environment says of proxies does not count
            (pycurl.NOSIGNAL, 1),
            (pycurl.PATH_AS_IS, 1),
            (pycurl.USERAGENT, limits.user_agent),
            (pycurl.HTTPHEADER, headers),
            (pycurl.CONNECTTIMEOUT_MS, max(1, round(1000 * limits.connect_timeout_s))),
            (pycurl.MAXAGE_CONN, KEEP_ALIVE_S),
            (pycurl.BUFFERSIZE, BUFFER_BYTES),
            (pycurl.RESOLVER_START_FUNCTION, self._look_up),
            (pycurl.OPENSOCKETFUNCTION, self._socket),
            (pycurl.PREREQFUNCTION, self._connected),
            (pycurl.HEADERFUNCTION, self._header),
            (pycurl.WRITEFUNCTION, self._body),
            *_authorities(),
        ):
            self._curl.setopt(option, value)

    async def run(
        self,
        multi: pycurl.AsyncCurlMulti,
        target: Target,
        addresses: tuple[str, ...],
        port: int | None,
        deadline: float,
        reply: Reply,
    ) -> None:
        self._host, self._port, self._deadline, self._reply = target.host, port, deadline, reply
        self._may_look_up = not addresses  # an address in numbers
        self._loop = asyncio.get_running_loop()
        self._error: Exception | None = None
        self._headers, self._status = Headers(), 0
        self._wanted = self._enough = False
        self._heard_at: float | None = None  # when a byte came; None: it is not connected yet
        place = f"{target.host}:{target.port}:"
        self._curl.setopt(pycurl.URL, target.url)
        self._set(pycurl.CONNECT_TO, f"{place}{LOOPBACK}:{port}" if port else "")
        # `+`: libcurl may forget it in time
        self._set(pycurl.RESOLVE, f"+{place}{','.join(map(_bracketed, addresses))}" if addresses else "")
        self._done = multi.add_handle(self._curl)
        try:
            await self._done
        except (pycurl.error, asyncio.CancelledError) as error:
            if self._error is not None:
                raise self._error from None
            if isinstance(error, asyncio.CancelledError):
                raise
            if not self._enough:
                raise self._fault(*error.args) from error
        if not (self._wanted or self._enough):  # to libcurl an answer may end in its head
            raise self._hung_up()

    def _set(self, option: int, line: str) -> None:
        """An option that is a list, of one line or none."""
        if line:
            self._curl.setopt(option, [line])
        else:
            self._curl.unsetopt(option)

    def end_if_late(self, multi: pycurl.AsyncCurlMulti, now: float) -> None:
        if self._done.done():
            return
        if now >= self._deadline:
            self._error = _not_done(self._host, self._limits)
        elif self._heard_at is not None and now - self._heard_at >= self._limits.read_timeout_s:
            quiet_s = self._limits.read_timeout_s
            self._error = RowFault("timeout", f"{self._host}: no byte for {quiet_s:g} s")
        else:
            return
        multi.remove_handle(self._curl)  # cancels `_done`

    def _look_up(self) -> int:
        """libcurl is about to look the host up; names it was given the addresses of."""
        return 0 if self._may_look_up else 1

    def _socket(self, purpose: int, address: Any) -> Any:
        """The last place before a connection: only where it may go. `address` is what it will be connected to."""
        ip, port = address.addr[:2]
        if not (is_public(ip) or (ip == LOOPBACK and port == self._port)):
            self._error = RowFault(*forbidden(self._host, ip))
            return pycurl.SOCKET_BAD
        return socket.socket(address.family, address.socktype, address.protocol)

    def _connected(self, *addresses: Any) -> int:
        self._heard_at = self._loop.time()
        return int(pycurl.PREREQFUNC_OK)

    def _header(self, line: bytes) -> int | None:
        """A line; the empty one ends a head. A head of 1xx is followed by another; what follows a body are trailers."""
        self._heard_at = self._loop.time()
        try:
            if self._enough or self._wanted:
                return None
            if line.startswith(b"HTTP/"):
                self._headers, self._status = Headers(), self._status_in(line)
            elif line.strip():
                self._headers.add(line)
            elif self._status >= 200:
                return self._head()
        except Exception as error:  # libcurl would print it; `run` raises it
            self._error = error
            return -1
        return None

    def _status_in(self, line: bytes) -> int:
        found = STATUS.match(line)
        if found is None:
            raise RowFault("bad_response", f"{self._host}: no status in its first line")
        return int(found[1])

    def _head(self) -> int | None:
        self._wanted = self._reply.head(self._status, self._headers)
        if self._wanted:
            return None
        self._enough = True
        length = self._headers.get("Content-Length")
        return None if length.isdecimal() and len(length) < 9 and int(length) <= DRAIN_BYTES else -1

    def _body(self, data: bytes) -> int | None:
        self._heard_at = self._loop.time()
        if self._enough:
            return None
        try:
            self._reply.piece(data)
        except Exception as error:  # as above
            self._error = error
            return -1
        return None

    def _fault(self, code: int, said: str) -> RowFault:
        """libcurl's error, typed. Details name no port and no time: they are the same on every run."""
        host, limits = self._host, self._limits
        if code == pycurl.E_OPERATION_TIMEDOUT:  # it was told of no other deadline
            return RowFault("timeout", f"{host}: no connection within {limits.connect_timeout_s:g} s")
        if code == pycurl.E_COULDNT_CONNECT:
            number = self._curl.getinfo(pycurl.OS_ERRNO)
            return RowFault("connect", f"{host}: {os.strerror(number) if number else 'no connection'}")
        if code in TLS_CODES:
            return RowFault("tls", f"{host}: {_plain(said)}")
        if code in HUNG_UP_CODES:
            return self._hung_up()
        return RowFault("bad_response", f"{host}: {_plain(said)}")

    def _hung_up(self) -> RowFault:
        return RowFault("disconnected", f"{self._host} hung up before the end")


def _not_done(host: str, limits: Limits) -> RowFault:
    return RowFault("timeout", f"{host}: not done after {limits.timeout_s:g} s")


def _plain(said: str) -> str:
    """libcurl's words without what differs from run to run."""
    return re.sub(r"\b\d+ (ms|milliseconds|bytes?)\b", "some", said)[:200]


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _authorities() -> list[tuple[int, Any]]:
    """Whose certificates count: those of the system, as Python's `ssl` finds them (SSL_CERT_FILE, SSL_CERT_DIR)."""
    paths = ssl.get_default_verify_paths()
    found = [(pycurl.CAINFO, paths.cafile)] * bool(paths.cafile) + [(pycurl.CAPATH, paths.capath)] * bool(
        paths.capath
    )
    return found or [(pycurl.SSL_OPTIONS, pycurl.SSLOPT_NATIVE_CA)]
