"""The client against servers that say things byte by byte."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from vlpipe.pipeline.errors import RowFault
from vlpipe.pipeline.files import ListFile
from vlpipe.stages.fetching.images import FetchImages
from vlpipe.stages.web.client import DRAIN_BYTES, Client, _plain
from vlpipe.stages.web.headers import Headers
from vlpipe.stages.web.limits import Limits
from vlpipe.stages.web.url import target_of

PEM = Path(__file__).with_name("raw_test.pem")  # a key and its certificate for raw.test, made for these tests
Said = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Kept:
    """A reply that keeps all; `wanted`: whether it wants the body."""

    def __init__(self, wanted: bool = True) -> None:
        self.wanted, self.status, self.body = wanted, 0, b""

    def head(self, status: int, headers: Headers) -> bool:
        self.status, self.headers = status, headers
        return self.wanted

    def piece(self, data: bytes) -> None:
        self.body += data


def limits(**parameters: Any) -> Limits:
    stage = FetchImages(list=ListFile(path="x"), **parameters)
    return Limits(**{f.name: getattr(stage, f.name) for f in fields(Limits)})


class Raw:
    """A server that answers each request on a connection with the next of `answers`, and remembers what was asked."""

    def __init__(self, *answers: bytes, then_close: bool = False) -> None:
        self.answers, self.then_close = list(answers), then_close
        self.asked: list[bytes] = []
        self.connections = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while self.answers:
                self.asked.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(self.answers.pop(0))
                await writer.drain()
                if self.then_close:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def client(
    said: Said, tls: ssl.SSLContext | None = None, **parameters: Any
) -> AsyncIterator[Callable[..., Awaitable[Kept]]]:
    """Yields `get(path, wanted=True)`, which asks raw.test."""
    server = await asyncio.start_server(said, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    asking = limits(**{"read_timeout_s": 0.5, "timeout_s": 2.0, **parameters})
    made = Client(asking, {"Raw.test": port}, "image/*")

    async def get(path: str = "/", wanted: bool = True) -> Kept:
        kept = Kept(wanted)
        scheme = "https" if tls else "http"
        await made.get(target_of(f"{scheme}://raw.test{path}"), asking.timeout_s, kept)
        return kept

    try:
        yield get
    finally:
        made.close()
        server.close()


def ask(*answers: bytes, **more: Any) -> Kept:
    """What one request to a server that says this comes to."""

    async def go() -> Kept:
        async with client(Raw(*answers, then_close=True), **more) as get:
            return await get()

    return asyncio.run(go())


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.mark.parametrize(
    "answer",
    [
        OK,
        b"HTTP/1.1 100 Continue\r\nX-Robots-Tag: noai\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
        + OK,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1;x=y\r\nk\r\n0\r\nX-Robots-Tag: noai\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nok",  # until it hangs up
        b"HTTP/1.0 200 OK\r\n\r\nok",
        b"HTTP/1.1 200\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok and more",
    ],
    ids=["plain", "1xx", "chunked", "no length", "1.0", "lengths", "line feeds", "more than it said"],
)
def test_what_is_read(answer: bytes) -> None:
    kept = ask(answer)
    assert (kept.status, kept.body) == (200, b"ok")
    assert "X-Robots-Tag" not in kept.headers  # of an early head, or behind the body


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "disconnected"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "disconnected"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok", "disconnected"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nok", "disconnected"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxx\r\nok\r\n0\r\n\r\n", "disconnected"),
        (b"just a picture", "bad_response"),  # HTTP/0.9
        (b"HTTP/1.1 abc\r\n\r\n", "bad_response"),
        (b"HTTP/1.1 200 OK\r\nX-Nul: a\x00b\r\nContent-Length: 2\r\n\r\nok", "bad_response"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", "bad_response"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok", "bad_response"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000 + b"\r\nok", "bad_response"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000 + b"\r\n\r\nok", "bad_response"),
    ],
)
def test_what_is_refused(answer: bytes, why: str) -> None:
    with pytest.raises(RowFault) as found:
        ask(answer)
    assert found.value.why == why
    assert "raw.test" in found.value.detail or "headers" in found.value.detail


def test_what_is_sent() -> None:
    raw = Raw(OK)

    async def go() -> None:
        async with client(raw, user_agent="me/1.0 (mail)") as get:
            await get("/a/../b%20c?x=[1]&y=//")

    asyncio.run(go())
    lines = raw.asked[0].decode().split("\r\n")
    assert lines[0] == "GET /a/../b%20c?x=[1]&y=// HTTP/1.1"
    assert sorted(lines[1:-2]) == [
        "Accept-Encoding: identity",
        "Accept: image/*",
        "Host: raw.test",
        "User-Agent: me/1.0 (mail)",
    ]


@pytest.mark.parametrize(("size", "connections"), [(0, 1), (DRAIN_BYTES, 1), (DRAIN_BYTES + 1, 2)])
def test_a_connection_serves_again_when_an_unwanted_body_is_small(size: int, connections: int) -> None:
    missing = b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n\r\n" % size + bytes(size)
    raw = Raw(missing, OK)

    async def go() -> tuple[Kept, Kept]:
        async with client(raw) as get:
            return await get("/gone", wanted=False), await get()

    gone, kept = asyncio.run(go())
    assert (gone.status, gone.body, kept.body) == (404, b"", b"ok")
    assert raw.connections == connections


def test_an_idle_connection_that_was_closed_is_no_fault() -> None:
    raw = Raw(OK, OK, then_close=True)

    async def go() -> list[bytes]:
        async with client(raw) as get:
            first = await get()
            await asyncio.sleep(0.05)
            return [first.body, (await get()).body]

    assert asyncio.run(go()) == [b"ok", b"ok"]
    assert raw.connections == 2


@pytest.mark.parametrize(
    ("sent", "pause_s", "detail"),
    [
        (b"", 5.0, "raw.test: no byte for 0.5 s"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", 5.0, "raw.test: no byte for 0.5 s"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", 0.2, "raw.test: the request took more than 1 s"),
    ],
)
def test_deadlines(sent: bytes, pause_s: float, detail: str) -> None:
    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        for _ in range(20):
            await asyncio.sleep(pause_s)
            writer.write(b".")

    async def go() -> None:
        async with client(slow, timeout_s=1.0) as get:
            await get()

    with pytest.raises(RowFault) as found:
        asyncio.run(go())
    assert (found.value.why, found.value.detail) == ("timeout", detail)


def test_a_status_counts_though_the_rest_of_its_body_does_not_come() -> None:
    """A small unwanted body is read so that the connection can be used again; that is not worth a timeout."""

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 9000\r\n\r\n")
        for _ in range(20):
            await asyncio.sleep(0.1)
            writer.write(b".")

    async def go() -> int:
        async with client(slow, timeout_s=0.5) as get:
            return (await get(wanted=False)).status

    assert asyncio.run(go()) == 404


def test_details_have_no_control_characters() -> None:
    """A certificate's name may have them, and libcurl repeats it."""
    assert "\x1b" not in _plain("no alternative name matches '\x1b[31m\r\nred' after 300 milliseconds")
    assert _plain("after 300 milliseconds") == "after some"


def test_who_gives_up_leaves_nothing_behind() -> None:
    raw = Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", OK)

    async def go() -> bytes:
        async with client(raw) as get:
            asking = asyncio.ensure_future(get())
            await asyncio.sleep(0.1)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            raw.answers[:] = [OK]
            return (await get()).body

    assert asyncio.run(go()) == b"ok"


def test_what_a_reply_raises_ends_the_request() -> None:
    class Full(Kept):
        def piece(self, data: bytes) -> None:
            raise OSError(28, "No space left on device")

    async def go(reply: Kept) -> None:
        server = await asyncio.start_server(Raw(OK), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        made = Client(limits(), {"raw.test": port}, "*/*")
        try:
            await made.get(target_of("http://raw.test/"), 2.0, reply)
        finally:
            made.close()
            server.close()

    with pytest.raises(OSError, match="No space left"):
        asyncio.run(go(Full()))


def test_tls_by_the_system_s_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(PEM)
    with pytest.raises(RowFault, match=r"^tls: raw\.test: .*certificate"):
        ask(OK, tls=serving)
    monkeypatch.setenv("SSL_CERT_FILE", str(PEM))
    assert ask(OK, tls=serving).body == b"ok"


def test_libcurl_looks_no_name_up(decoy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`localhost` means this machine to everybody but our resolver, whose answer alone counts."""

    def elsewhere(host: str, *args: Any, **kwargs: Any) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.88.98.1", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", elsewhere)

    async def go() -> None:
        made = Client(limits(connect_timeout_s=0.2), {}, "*/*")
        try:
            await made.get(target_of(f"http://localhost:{decoy.port}/"), 2.0, Kept())
        finally:
            made.close()

    with pytest.raises(RowFault) as found:
        asyncio.run(go())
    assert found.value.why in ("timeout", "connect")
    assert not decoy.asked


def test_a_port_of_ours_is_open_to_its_own_name_only(decoy: Any) -> None:
    async def go(url: str) -> None:
        made = Client(limits(), {"mine.test": decoy.port}, "*/*")
        try:
            await made.get(target_of(url), 2.0, Kept())
        finally:
            made.close()

    asyncio.run(go("http://mine.test/ok.jpg"))
    with pytest.raises(RowFault, match="forbidden_address"):
        asyncio.run(go(f"http://127.0.0.1:{decoy.port}/ok.jpg"))
    assert sum(decoy.asked.values()) == 1
