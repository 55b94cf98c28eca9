"""Answers as servers really send them: a good image is kept, and what is none has its code."""

from __future__ import annotations

import gzip
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any

import pyarrow as pa
import pytest
from threat_server import JPEG, LocalImages

from vlpipe.pipeline.engine.worker.guard import Faults, run_guarded
from vlpipe.pipeline.errors import RowFault
from vlpipe.pipeline.files import ListFile
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
    "gzip-gzip": "bad_response: the response has the content encoding 'gzip, gzip', but none was requested",
    "zstd": "bad_response: the response has the content encoding 'zstd', but none was requested",
    "gzip-broken": "bad_response: the compressed response body is damaged",
    "gzip-nothing": "empty: ",
    "gzip-half": "disconnected: the compressed response body ends early",
    "gzip-short": "disconnected: the compressed response body ends early",
    "gzip-many": "bad_response: the compressed response body has more than 100 gzip members",
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


class Server(ThreadingTCPServer):
    daemon_threads, allow_reuse_address, request_queue_size, sent = True, True, 128, 0


@contextmanager
def serving_with(handler: type[BaseRequestHandler]) -> Iterator[Any]:
    with Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


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


STATUS_LINES = [
    b"HTTP/1.1 %d X" % n
    for n in (200, 203, 206, 204, 301, 302, 308, 304, 404, 429, 503, 599, 999, 100, 101, 0)
]
STATUS_LINES += [
    b"HTTP/1.1 abc",
    b"HTTP/2 200",
    b"HTTP/1.1",
    b"",
    b"\xff\xfe",
    b"HTTP/1.1 200 OK\r\r",
    b"HTTP/1.1 2000",
]
NAMES = [
    b"Retry-After",
    b"Location",
    b"Content-Encoding",
    b"Content-Length",
    b"Content-Range",
    b"X-Robots-Tag",
]
NAMES += [
    b"TDM-Reservation",
    b"Content-Usage",
    b"Transfer-Encoding",
    b"Connection",
    b"\xe9",
    b"",
    b" x",
    b"Set-Cookie",
]
VALUES = [
    b"gzip",
    b"deflate",
    b"br",
    b"chunked",
    b"bytes 0-9/10",
    b"bytes 0-",
    b",",
    b";",
    b":",
    b"=",
    b"*",
    b"%",
    b"[",
    b"]",
]
VALUES += [
    b"Mon, 01 Jan 2035 00:00:00 GMT",
    b"Fri, 31 Dec 9999 23:59:59 -2359",
    b"+9999",
    b"-1",
    b"9" * 5000,
    b"1e9",
    b"inf",
]
VALUES += [
    b"\xe9",
    b"\xed\xa0\x80",
    b"\xc2\xb2",
    b"\xd9\xa3",
    b"\x00",
    b"\t",
    b"\r",
    b"http://a../",
    b"http://[::1",
    b"//",
    b"@",
]
VALUES += [
    b"http://127.0.0.1/",
    b"http://h1.test/image",
    b"x" * 300,
    b"xn--a",
    b"#",
    b"?",
    b"..",
    b"http://" + b"a." * 999,
]


def random_answer(number: int) -> bytes:
    draw = random.Random(number)
    lines = [draw.choice(STATUS_LINES)]
    for _ in range(draw.randint(0, 4)):
        lines.append(draw.choice(NAMES) + b": " + b"".join(draw.choices(VALUES, k=draw.randint(0, 4))))
    body = draw.choice([JPEG, gzip.compress(JPEG), b"", b"3\r\nabc\r\n0\r\n\r\n", JPEG[:50]])
    return b"\r\n".join([*lines, b"", b""]) + body


class Random(BaseRequestHandler):
    """/image: an image; /N: the Nth random answer. Counts what is asked."""

    def handle(self) -> None:
        path = self.request.recv(65536).split(b" ")[1].decode()[1:]
        self.server.asked[path] += 1  # type: ignore[attr-defined]
        head = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
        with suppress(OSError):
            self.request.sendall(random_answer(int(path)) if path.isdecimal() else head + JPEG)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_answers_of_random_lines_are_their_rows_alone() -> None:
    """No reject has a code that nobody chose, no neighbour is lost, and none is asked again."""
    with serving_with(Random) as server:
        server.asked = Counter()
        hosts = [f"h{n}.test" for n in range(60)]
        urls = [f"http://h{n % 60}.test/{n if n % 60 > 9 else f'image?{n}'}" for n in range(480)]
        stage = LocalImages(
            ports=dict.fromkeys(hosts, server.server_address[1]),
            retries=0,
            timeout_s=10.0,
            max_wait_s=0.0,
            backoff_s=0.001,
        )
        rows = pa.concat_tables(listed((Pair(url, "t") for url in urls), source="web", text_source="web"))
        with stage.open() as work:
            outs = [*run_guarded(work, rows.combine_chunks(), Faults("s", 1000), once=True)]
        kept = {url for out in outs for url in out.table["url"].to_pylist()}
        codes = Counter(reject.why for out in outs for reject in out.rejects)
        assert kept >= {url for url in urls if "image" in url}
        assert len(kept) + codes.total() == len(urls)
        assert not [code for code in codes if code.startswith("error_")]
        assert len(codes) > 10
        assert max(times for path, times in server.asked.items() if path.startswith("image?")) == 1


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
    with serving_with(Endless) as server:
        yield server


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
    with pytest.raises(RowFault, match=r"^bad_response: the response has the content encoding"):
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


@pytest.mark.parametrize("unescape", [True, False])
def test_a_list_with_html_entities_in_its_urls(threats: Any, tmp_path: Path, unescape: bool) -> None:
    (tmp_path / "list.csv").write_text("url,text\nhttp://threat.test/ok.jpg?w=1&amp;h=2,t\n")
    stage = LocalImages(
        ports={"threat.test": threats.port},
        list=ListFile(path=str(tmp_path / "list.csv")),
        unescape_urls=unescape,
    )
    out = run_map(stage, pa.concat_tables(stage.rows()))
    wanted = "http://threat.test/ok.jpg?w=1&" + "amp;" * (not unescape) + "h=2"
    assert (out.table["url"].to_pylist(), out.table["final_url"].to_pylist()) == ([wanted], [wanted])
