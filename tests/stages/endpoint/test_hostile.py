"""Servers that break HTTP itself: whatever they send costs rows a typed outcome, in bounded time and memory."""

from __future__ import annotations

import gzip
import itertools
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread

import pytest
from endpoint_toys import rows

from vlpipe.pipeline.testing import run_map
from vlpipe.stages.caption.endpoint import CaptionEndpoint

OK = b"HTTP/1.1 200 OK\r\n"
SAID = b'{"choices":[{"message":{"content":"a dog"},"finish_reason":"stop"}]}'
MORE = b"X-More: " + b"a" * 8_000 + b"\r\n"
Sends = Callable[[], Iterable[bytes]]


def slowly(piece: bytes) -> Iterator[bytes]:
    while True:
        yield piece
        time.sleep(0.02)


@contextmanager
def raw_server(sends: Sends) -> Iterator[str]:
    """Answers each request with what `sends` yields, and closes the connection."""
    over = Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.05)

        def serve(line: socket.socket) -> None:
            with line, suppress(OSError):
                line.settimeout(5)
                line.recv(1 << 20)
                for piece in sends():
                    if over.is_set():
                        return
                    line.sendall(piece)

        def accept() -> None:
            while not over.is_set():
                with suppress(TimeoutError):
                    Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()

        thread = Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        finally:
            over.set()
            thread.join()


def whole(body: bytes, headers: bytes = b"", length: bytes | None = None) -> Sends:
    size = b"%d" % len(body) if length is None else length
    return lambda: [OK, headers, b"Content-Length: ", size, b"\r\n\r\n", body]


@pytest.mark.parametrize(
    ("sends", "why"),  # libcurl tells some of these apart differently from version to version
    [
        (lambda: [b""], {"disconnected", "bad_response"}),
        (lambda: [b"SSH-2.0-OpenSSH_9.0\r\n"], {"bad_response", "disconnected"}),
        (lambda: [b"HTTP/1.1 abc X\r\n\r\n"], {"bad_response", "disconnected", "bad_answer"}),
        (lambda: itertools.chain([OK], itertools.repeat(MORE)), {"bad_response", "disconnected"}),
        (lambda: itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n"), {"bad_response", "disconnected", "timeout"}),
        (lambda: itertools.chain([OK, b"Content-Length: 100\r\n\r\n"], slowly(b" ")), {"timeout"}),
        (lambda: itertools.chain([OK], slowly(b"X-A: b\r\n")), {"timeout"}),
        (whole(SAID, length=b"-5"), {"bad_response", "bad_answer", "disconnected"}),
        (whole(SAID, length=b"9" * 40), {"too_large"}),
        (whole(SAID, length=b"1000"), {"disconnected"}),
        (lambda: [OK, b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"], {"bad_response", "disconnected"}),
        (lambda: [OK, b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n"], {"bad_response", "disconnected"}),
        (whole(gzip.compress(b" " * 50_000_000), b"Content-Encoding: gzip\r\n"), {"bad_answer"}),
        (whole(b'{"choices":[{"message":{"content":"' + b"9" * 5_000 + b'"},"index":' + b"9" * 5_000 + b"}]}"),
         {"bad_answer"}),
        (whole(b"\xff\xfe" + SAID.decode().encode("utf-16-le")), {None, "bad_answer"}),
    ],
    ids=["nothing", "another protocol", "odd status", "endless headers", "endless 100", "slow body", "slow headers",
         "negative length", "huge length", "short body", "odd chunk", "huge chunk", "gzip bomb", "huge number", "utf-16"],
)  # fmt: skip
def test_a_server_that_breaks_http(sends: Sends, why: set[str | None]) -> None:
    with raw_server(sends) as url:
        stage = CaptionEndpoint(
            base_url=url, model="m", prompt="p", retries=0, timeout_s=0.6, row_timeout_s=2.0, give_up_s=60.0
        )
        out = run_map(stage, rows(2))
    assert out.table.num_rows == 2
    found = [texts[-1] for texts in out.table["texts"].to_pylist()]
    assert {one["why"] for one in found} <= why
    assert all((one["kept"] is False) == (one["why"] is not None) for one in found)


def test_a_server_that_behaves_is_read() -> None:
    with raw_server(whole(SAID)) as url:
        out = run_map(CaptionEndpoint(base_url=url, model="m", prompt="p"), rows(2))
    assert [texts[-1]["text"] for texts in out.table["texts"].to_pylist()] == ["a dog"] * 2
