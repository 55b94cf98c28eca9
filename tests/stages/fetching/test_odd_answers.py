"""Answers as servers really send them: a good image is kept, and what is none has its code."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Iterator, Sequence
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any

import pyarrow as pa
import pytest
from threat_server import JPEG, LocalImages

from vlpipe.pipeline.errors import RowFault
from vlpipe.pipeline.shard import Out
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.lists.list import Pair, listed
from vlpipe.stages.web.headers import FIRST_BYTES, Headers, Unpacker, coding_of
from vlpipe.stages.web.url import redirected

GOOD = [
    *(
        "coding-none",
        "coding-utf-8",
        "coding-binary",
        "coding-type",
        "coding-empty",
        "coding-list",
        "coding-twice",
    ),
    *("gzip-plain", "gzip-members", "gzip-zlib", "gzip-zeros", "deflate", "deflate-raw", "deflate-plain"),
    *("203", "206", "206-equals", "to-latin-1", "to-utf-8"),
]
BAD = {
    "gzip-gzip": "bad_response: content encoding 'gzip, gzip', but none was requested",
    "zstd": "bad_response: content encoding 'zstd', but none was requested",
    "gzip-broken": "bad_response: the compressed body is broken",
    "gzip-nothing": "empty: ",
    "gzip-half": "disconnected: the compressed body ends early",
    "gzip-short": "disconnected: the compressed body ends early",
    "gzip-many": "bad_response: the compressed body has more than 100 members",
    **dict.fromkeys(
        ("206-part", "206-tail", "206-unknown", "206-huge", "206-lie"), "http_206: Partial Content"
    ),
    "202": "http_202: Accepted",
    "to-latin-1-host": "bad_url: 'caf%E9.test' is not a host name",
    "to-nul": "http_404: Not Found",
}


def fetch(port: int, urls: Sequence[str], hosts: Sequence[str] = ("threat.test",), **parameters: Any) -> Out:
    stage = LocalImages(
        ports=dict.fromkeys(hosts, port), **{"retries": 0, "max_bytes": 1_000_000, **parameters}
    )
    rows = pa.concat_tables(listed((Pair(url, "t") for url in urls), source="web", text_source="web"))
    return run_map(stage, rows)


def test_each_odd_answer_is_an_image_or_has_its_code(threats: Any) -> None:
    names = [*GOOD, *BAD]
    out = fetch(threats.port, [f"http://threat.test/raw/{name}" for name in names])
    assert [url.rpartition("/")[2] for url in out.table["url"].to_pylist()] == GOOD
    assert {image[: len(JPEG)] for image in out.table["image"].to_pylist()} == {JPEG}
    for (name, wanted), reject in zip(BAD.items(), out.rejects, strict=True):
        assert f"{reject.why}: {reject.detail}".startswith(wanted), name
    statuses = dict(zip(out.table["url"].to_pylist(), out.table["http_status"].to_pylist(), strict=True))
    assert [statuses[f"http://threat.test/raw/{name}"] for name in ("203", "206", "coding-none")] == [
        203,
        206,
        200,
    ]
    final = dict(zip(out.table["url"].to_pylist(), out.table["final_url"].to_pylist(), strict=True))
    assert final["http://threat.test/raw/to-latin-1"] == "http://threat.test/raw/caf%E9"
    assert final["http://threat.test/raw/to-utf-8"] == "http://threat.test/raw/caf%C3%A9"
    assert set(threats.asked.values()) == {1}


class Endless(BaseRequestHandler):
    """Answers with a head of `HEADS` and then with bytes without end, as fast as it can."""

    def handle(self) -> None:
        path = self.request.recv(65536).split(b" ")[1].decode()[1:].partition("?")[0]
        head, more = HEADS[path]
        try:
            self.request.sendall(b"HTTP/1.1 200 OK\r\n" + head)
            while more:
                self.request.sendall(more)
                self.server.sent += len(more)  # type: ignore[attr-defined]
        except OSError:
            pass


PACKED = b"Content-Encoding: gzip\r\n\r\n"
HEADS = {
    "image": (b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(JPEG) + JPEG, b""),
    "tail": (PACKED + gzip.compress(JPEG), b"Z" * 65536),
    "tail-zeros": (PACKED + gzip.compress(JPEG), bytes(65536)),
    "members": (PACKED + gzip.compress(JPEG), gzip.compress(b"") * 3000),
    "name": (PACKED + b"\x1f\x8b\x08\x08\0\0\0\0\0\x03", b"n" * 65536),
    "empty-blocks": (PACKED + b"\x1f\x8b\x08\0\0\0\0\0\0\x03", b"\0\0\0\xff\xff" * 13000),
    "zeros": (PACKED, gzip.compress(bytes(10**7))),
}


@pytest.fixture
def endless() -> Iterator[Any]:
    class Server(ThreadingTCPServer):
        daemon_threads, allow_reuse_address, request_queue_size, sent = True, True, 128, 0

    with Server(("127.0.0.1", 0), Endless) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("tail", ""),  # complete, and what follows is no part of it
        ("tail-zeros", ""),
        ("members", "bad_response"),
        ("name", "too_large"),
        ("empty-blocks", "too_large"),
        ("zeros", "too_large"),
    ],
)
def test_a_compressed_body_that_never_ends_holds_nobody_up(endless: Any, path: str, why: str) -> None:
    """16 of them and 20 images of other hosts: a second or two, and no neighbour is lost."""
    hosts = [f"h{n}.test" for n in range(36)]
    urls = [f"http://h{n}.test/{path if n < 16 else 'image'}?{n}" for n in range(36)]
    began = time.monotonic()
    out = fetch(endless.server_address[1], urls, hosts, timeout_s=20.0)
    assert [reject.why for reject in out.rejects] == [why] * 16 * bool(why)
    assert out.table["url"].to_pylist() == (urls[16:] if why else urls)
    assert time.monotonic() - began < 15
    assert endless.sent < 16 * 20_000_000


def packed_in(pieces: Sequence[bytes], coding: str = "gzip", room: int = 10**9) -> bytes:
    unpacker = Unpacker(coding)
    return b"".join([unpacker.add(piece, room) for piece in pieces]) + unpacker.end(room)


@pytest.mark.parametrize("step", [1, 2, 3, FIRST_BYTES - 1, FIRST_BYTES, 1000])
@pytest.mark.parametrize("tail", [b"", b"\0", b"\x1f", b"Z" * 50])
def test_pieces_of_any_size(step: int, tail: bytes) -> None:
    for data in (b"", b"a", JPEG):
        for packed in (gzip.compress(data) + tail, gzip.compress(data) + gzip.compress(b"") + tail):
            pieces = [packed[start : start + step] for start in range(0, len(packed), step)]
            if tail == b"\x1f":  # may begin another member, which does not come
                with pytest.raises(RowFault, match="disconnected"):
                    packed_in(pieces)
            else:
                assert packed_in(pieces) == data
    plain = [JPEG[start : start + step] for start in range(0, len(JPEG), step)]
    assert packed_in(plain) == packed_in(plain, "deflate") == JPEG


@pytest.mark.parametrize(
    ("values", "coding"),
    [
        ([], ""),
        ([""], ""),
        (["identity"], ""),
        (["utf-8, binary"], ""),
        (["GZIP"], "gzip"),
        (["none", " x-gzip ,"], "x-gzip"),
        (["deflate"], "deflate"),
    ],
)
def test_codings(values: list[str], coding: str) -> None:
    assert coding_of(values) == coding


@pytest.mark.parametrize(
    "values", [["br"], ["gzip", "gzip"], ["identity, compress"], ["deflate, gzip"], ["zstd"] * 9000]
)
def test_codings_that_are_not_unpacked(values: list[str]) -> None:
    with pytest.raises(RowFault, match=r"^bad_response: content encoding"):
        coding_of(values)


def location(raw: bytes) -> str:
    headers = Headers()
    headers.add(b"Location: " + raw)
    return headers.get("Location")


@pytest.mark.parametrize(
    ("raw", "url"),
    [
        (b"/caf\xe9.jpg", "http://a.test/caf%E9.jpg"),
        (b"caf\xe9/\xff?q=\xe9&x", "http://a.test/p/caf%E9/%FF?q=%E9&x"),
        (b"//b.test/\xe9\xc3\xa9", "http://b.test/%E9%C3%A9"),
        ("/caf\u00e9.jpg".encode(), "http://a.test/caf%C3%A9.jpg"),
        (b"/\xe9#\xe9", "http://a.test/%E9"),
    ],
)
def test_bytes_of_a_location_that_are_no_utf_8_are_sent_as_they_are(raw: bytes, url: str) -> None:
    assert redirected("http://a.test/p/q", location(raw)) == url
