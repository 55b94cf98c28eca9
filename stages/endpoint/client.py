"""An HTTP/1.1 client that posts JSON to one server, over libcurl, for many concurrent requests in one asyncio loop.

The server is named by the workflow, never by data, so any address is allowed: an endpoint on localhost is normal. Redirects
are not followed, so no server can send a request elsewhere. The environment (proxies, netrc) is ignored, no cookies are
kept, and no content coding is accepted, so that a small response cannot become a large one.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pycurl

from vlpipe.pipeline.errors import one_line
from vlpipe.stages.web.client import HUNG_UP_CODES, TLS_CODES, authorities
from vlpipe.stages.web.response import retry_after_s
from vlpipe.stages.web.transfers import Ended, Transfers

CONNECT_TIMEOUT_S = 10.0
KEEP_ALIVE_S = 60
NO_CONNECTION = frozenset({pycurl.E_COULDNT_CONNECT})
NO_NAME = frozenset({pycurl.E_COULDNT_RESOLVE_HOST})


@dataclass(frozen=True, slots=True)
class Response:
    """A complete response. retry_after_s: of its header, 0 if it has none."""

    status: int
    body: bytes
    retry_after_s: float = 0.0


class NoResponse(Exception):
    """There is no complete response. why: timeout, connect, dns, tls, disconnected, too_large or bad_response."""

    def __init__(self, why: str, detail: str) -> None:
        self.why, self.detail = why, detail
        super().__init__(f"{why}: {detail}")


class Client:
    """Posts to `url`, in the running loop. The caller limits the number of concurrent requests to `concurrency`.

    headers: lines such as `Name: value`. timeout_s: of a request with its whole response; max_bytes: of a response's body.
    """

    def __init__(
        self, url: str, headers: Sequence[str], *, concurrency: int, timeout_s: float, max_bytes: int
    ) -> None:
        self._url, self._headers = url, ["Expect:", *headers]
        self._timeout_s, self._max_bytes = timeout_s, max_bytes
        self._transfers = Transfers(concurrency)
        self._free: list[_Post] = []

    async def post(self, body: bytes) -> Response:
        """Sends a request and returns its response. Raises NoResponse."""
        post = self._free.pop() if self._free else self._new()
        try:
            return await post.run(body)
        finally:
            self._free.append(post)

    def _new(self) -> _Post:
        return _Post(self._transfers, self._url, self._headers, self._timeout_s, self._max_bytes)

    def close(self) -> None:
        """Closes all connections; requests under way are cancelled."""
        self._transfers.close()


class _Post:
    """A libcurl handle, reused for one request after another."""

    def __init__(
        self, transfers: Transfers, url: str, headers: list[str], timeout_s: float, max_bytes: int
    ) -> None:
        self._transfers, self._max_bytes, self._timeout_s = transfers, max_bytes, timeout_s
        self._curl: Any = pycurl.Curl()
        self._begin()
        for option, value in (
            (pycurl.URL, url),
            (pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS),
            (pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1),
            (pycurl.PROXY, ""),
            (pycurl.NOSIGNAL, 1),
            (pycurl.FOLLOWLOCATION, 0),
            (pycurl.POST, 1),
            (pycurl.USERAGENT, "vlpipe"),
            (pycurl.HTTPHEADER, headers),
            (pycurl.CONNECTTIMEOUT_MS, max(1, round(1000 * min(CONNECT_TIMEOUT_S, timeout_s)))),
            (pycurl.TIMEOUT_MS, max(1, round(1000 * timeout_s))),
            (pycurl.MAXAGE_CONN, KEEP_ALIVE_S),
            (pycurl.OPENSOCKETFUNCTION, self._socket),
            (pycurl.HEADERFUNCTION, self._header),
            (pycurl.WRITEFUNCTION, self._body),
            *authorities(),
        ):
            self._curl.setopt(option, value)

    def _begin(self) -> None:
        self._pieces: list[bytes] = []
        self._num_bytes = 0
        self._retry_after_s = 0.0
        self._is_too_large = False

    async def run(self, body: bytes) -> Response:
        self._begin()
        self._curl.setopt(pycurl.POSTFIELDS, body)
        done: asyncio.Future[Ended] = self._transfers.start(self._curl)
        try:
            ended = await done
        finally:
            self._transfers.end(self._curl)  # if it is cancelled
        if self._is_too_large:
            raise NoResponse("too_large", f"the response has more than {self._max_bytes:,} bytes")
        if ended.code:
            raise self._failed(*ended)
        status = int(self._curl.getinfo(pycurl.RESPONSE_CODE))
        pieces, self._pieces = self._pieces, []
        return Response(status, b"".join(pieces), self._retry_after_s)

    def _socket(self, purpose: int, address: Any) -> Any:
        self._transfers.before_socket()
        found = socket.socket(address.family, address.socktype, address.protocol)
        if found.family != socket.AF_UNIX:
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return found

    def _header(self, line: bytes) -> int | None:
        """Called by libcurl for each header line, also of interim responses; returns -1 to end the request."""
        name, _, value = line[:200].partition(b":")
        name = name.strip().lower()
        if name == b"retry-after":
            self._retry_after_s = retry_after_s(value.decode("latin-1"))
        elif name == b"content-length":
            length = value.strip()
            if length.isdigit() and (len(length) > 15 or int(length) > self._max_bytes):
                self._is_too_large = True
                return -1
        return None

    def _body(self, data: bytes) -> int | None:
        self._num_bytes += len(data)
        if self._num_bytes > self._max_bytes:
            self._is_too_large = True
            self._pieces.clear()
            return -1
        self._pieces.append(data)
        return None

    def _failed(self, code: int, message: str) -> NoResponse:
        """Returns libcurl's error, without figures that differ from run to run."""
        text = one_line(re.sub(r"\b\d+ (ms|milliseconds|bytes?|out of)\b", "some", message), 200)
        if code == pycurl.E_OPERATION_TIMEDOUT:
            return NoResponse("timeout", f"no complete response within {self._timeout_s:g} s")
        if code in NO_CONNECTION:
            return NoResponse("connect", "no connection to the server")
        if code in NO_NAME:
            return NoResponse("dns", text)
        if code in TLS_CODES:
            return NoResponse("tls", text)
        if code in HUNG_UP_CODES:
            return NoResponse("disconnected", "the server closed the connection before the end")
        return NoResponse("bad_response", text)
