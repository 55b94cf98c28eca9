"""A server of everything that goes wrong on the web, and a stage that asks it under made-up names."""

from __future__ import annotations

import gzip
import io
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

from vlpipe.pipeline.files import ListFile
from vlpipe.stages.fetching.images import FetchImages


def noise(kind: str = "JPEG", size: tuple[int, int] = (20, 12), seed: int = 0, **options: Any) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def animation() -> bytes:
    frames = [Image.new("L", (4, 4), 10 * i) for i in range(12)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def packed_zeros(num: int, times: int) -> bytes:
    """A deflate stream of `num * times` zeros. After a full flush the same bytes are packed to the same bytes."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return (packer.compress(bytes(num)) + packer.flush(zlib.Z_FULL_FLUSH)) * times + b"\x03\x00"


def gzip_bomb() -> bytes:
    """50 MB of zeros in about 50 KB."""
    check = zlib.crc32(bytes(50_000_000))
    head = b"\x1f\x8b\x08" + bytes(6) + b"\xff"
    return head + packed_zeros(1_000_000, 50) + struct.pack("<II", check, 50_000_000)


def bomb() -> bytes:
    """A PNG of 30,000 x 30,000 pixels in about 100 KB."""
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    rows, sum_ = bytes(3751) * 100, 1
    for _ in range(300):
        sum_ = zlib.adler32(rows, sum_)
    body = b"\x78\xda" + packed_zeros(len(rows), 300) + struct.pack(">I", sum_)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def scans() -> bytes:
    """A progressive JPEG with its last scan 200 times: each is a pass over all pixels."""
    whole = noise(progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + whole[last:-2] * 200 + whole[-2:]


def invisible() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", (9, 9), (200, 10, 10, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def credentials(use: str, entry: str = "c2pa.ai_training", label: str = "c2pa.training-mining") -> bytes:
    """A JPEG with a C2PA assertion about training: a JUMBF box in APP11, its content in CBOR."""

    def text(value: str) -> bytes:
        return (
            bytes([0x60 | len(value)]) + value.encode()
            if len(value) < 24
            else bytes([0x78, len(value)]) + value.encode()
        )

    def box(kind: bytes, *parts: bytes) -> bytes:
        body = b"".join(parts)
        return struct.pack(">I", len(body) + 8) + kind + body

    said = b"\xa1" + text("entries") + b"\xa1" + text(entry) + b"\xa1" + text("use") + text(use)
    about = box(b"jumd", b"cbor\x00\x11\x00\x10\x80\x00\x00\xaa\x00\x38\x9b\x71\x03", label.encode(), b"\x00")
    jumbf = box(b"jumb", about, box(b"cbor", said))
    segment = b"JP\x00\x01\x00\x00\x00\x01" + jumbf
    return JPEG[:2] + b"\xff\xeb" + struct.pack(">H", len(segment) + 2) + segment + JPEG[2:]


JPEG = noise()
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://127.0.0.1/x"/></svg>'
# Path -> status, headers, body; what needs more than that is in `Threats.do_GET`.
PLAIN: dict[str, tuple[int, dict[str, str], bytes]] = {
    "/ok.jpg": (200, {"Content-Type": "image/jpeg"}, JPEG),
    "/as-text": (200, {"Content-Type": "text/html"}, JPEG),
    "/gzipped": (200, {"Content-Encoding": "gzip"}, gzip.compress(JPEG)),
    "/gzip-bomb": (200, {"Content-Encoding": "gzip"}, gzip_bomb()),
    "/gzip-cut": (200, {"Content-Encoding": "gzip"}, gzip.compress(JPEG)[:100]),
    "/brotli": (200, {"Content-Encoding": "br"}, b"\x0b\x02\x80abc"),
    "/html.jpg": (200, {"Content-Type": "image/jpeg"}, b"<!doctype html><p>gone"),
    "/truncated.jpg": (200, {}, JPEG[: len(JPEG) // 2]),
    "/animation.gif": (200, {}, animation()),
    "/bomb.png": (200, {}, bomb()),
    "/empty": (200, {}, b""),
    "/scans.jpg": (200, {}, scans()),
    "/invisible.png": (200, {}, invisible()),
    "/drawing.svg": (200, {"Content-Type": "image/svg+xml"}, SVG),
    "/polyglot.jpg": (200, {}, JPEG + b"PK\x03\x04 and a script"),
    "/credentials-no.jpg": (200, {}, credentials("notAllowed")),
    "/credentials-yes.jpg": (200, {}, credentials("allowed")),
    "/pixel.gif": (200, {}, noise("GIF", (1, 1))),
    "/strip.png": (200, {}, noise("PNG", (1, 3000))),
    "/long-header": (200, {"Content-Security-Policy": "x" * 20_000}, JPEG),
    "/many-headers": (200, {f"X-{n}": "x" * 1000 for n in range(80)}, JPEG),
    "/forbidden": (403, {}, b"no"),
    "/login": (401, {}, b"no"),
    "/law": (451, {}, b"no"),
    "/no-ai": (200, {"X-Robots-Tag": "noai, noimageai"}, JPEG),
    "/no-tdm": (200, {"tdm-reservation": "1"}, JPEG),
    "/no-training": (200, {"Content-Usage": "search=y, train-ai=n"}, JPEG),
    "/not-meant": (200, {"X-Robots-Tag": "otherbot: none", "TDM-Reservation": "0"}, JPEG),
    "/moved-no-ai": (301, {"Location": "/ok.jpg", "X-Robots-Tag": "noai"}, b""),
    "/missing": (404, {}, b"no"),
    "/gone": (410, {}, b"no"),
    "/teapot": (418, {}, b"no"),
    "/broken": (500, {}, b"no"),
    "/busy": (429, {"Retry-After": "3600"}, b"later"),
    "/away": (503, {}, b"later"),
    "/odd-rest-year": (503, {"Retry-After": "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"}, b"later"),
    "/odd-rest-zone": (429, {"Retry-After": "Mon, 01 Jan 2035 00:00:00 +99999999999999999999"}, b"later"),
    "/to-dots": (302, {"Location": "http://a../ok.jpg"}, b""),
    "/partial": (206, {}, JPEG),
    "/moved": (301, {"Location": "/ok.jpg"}, b""),
    "/signed": (302, {"Location": "//threat.test/ok.jpg?w=1&X-Amz-Signature=abc&token=t"}, b""),
    "/loop": (302, {"Location": "/loop"}, b""),
    "/nowhere": (302, {}, b""),
    "/to-file": (302, {"Location": "file:///etc/passwd"}, b""),
    "/to-ftp": (302, {"Location": "ftp://threat.test/x"}, b""),
    "/to-metadata": (302, {"Location": "http://169.254.169.254/latest/meta-data"}, b""),
    "/to-user": (302, {"Location": "http://me:secret@threat.test/ok.jpg"}, b""),
}


def raw(body: bytes = b"", *headers: str | bytes, status: str = "200 OK", length: int | None = None) -> bytes:
    """An answer as it is on the wire."""
    lines = [
        f"HTTP/1.1 {status}",
        f"Content-Length: {len(body) if length is None else length}",
        "Connection: close",
        *headers,
        "",
        "",
    ]
    return b"\r\n".join(one if isinstance(one, bytes) else one.encode() for one in lines) + body


PACKED = gzip.compress(JPEG)
# /raw/NAME -> the answer; the connection is closed after it.
RAW: dict[str, bytes] = {
    # a coding that is none, or is not what the body has
    "coding-none": raw(JPEG, "Content-Encoding: none"),
    "coding-utf-8": raw(JPEG, "Content-Encoding: UTF-8"),
    "coding-binary": raw(JPEG, "Content-Encoding: binary"),
    "coding-type": raw(JPEG, "Content-Encoding: image/jpeg"),
    "coding-empty": raw(JPEG, "Content-Encoding:"),
    "coding-list": raw(PACKED, "Content-Encoding: identity, gzip"),
    "coding-twice": raw(PACKED, "Content-Encoding: utf-8", "Content-Encoding: gzip"),
    "gzip-plain": raw(JPEG, "Content-Encoding: gzip"),
    "gzip-members": raw(gzip.compress(JPEG[:300]) + gzip.compress(JPEG[300:]), "Content-Encoding: x-gzip"),
    "gzip-zlib": raw(zlib.compress(JPEG), "Content-Encoding: gzip"),
    "gzip-zeros": raw(PACKED + bytes(5000), "Content-Encoding: gzip"),
    "deflate": raw(zlib.compress(JPEG), "Content-Encoding: deflate"),
    "deflate-raw": raw(zlib.compress(JPEG)[2:-4], "Content-Encoding: Deflate"),
    "deflate-plain": raw(JPEG, "Content-Encoding: deflate"),
    "gzip-gzip": raw(gzip.compress(PACKED), "Content-Encoding: gzip, gzip"),
    "zstd": raw(b"(\xb5/\xfd" + JPEG, "Content-Encoding: zstd"),
    "gzip-broken": raw(PACKED[:200] + bytes(200), "Content-Encoding: gzip"),
    "gzip-nothing": raw(b"", "Content-Encoding: gzip"),
    "gzip-half": raw(PACKED[:300], "Content-Encoding: gzip"),
    "gzip-short": raw(PACKED[:7], "Content-Encoding: gzip"),
    "gzip-many": raw(PACKED + gzip.compress(b"") * 2000, "Content-Encoding: gzip"),
    # statuses with content
    "203": raw(JPEG, status="203 Non-Authoritative Information"),
    "206": raw(JPEG, f"Content-Range: bytes 0-{len(JPEG) - 1}/{len(JPEG)}", status="206 Partial Content"),
    "206-equals": raw(
        JPEG, f"Content-Range: Bytes=0-{len(JPEG) - 1}/{len(JPEG)}", status="206 Partial Content"
    ),
    "206-part": raw(
        JPEG, f"Content-Range: bytes 0-{len(JPEG) - 1}/{len(JPEG) + 9}", status="206 Partial Content"
    ),
    "206-tail": raw(JPEG, f"Content-Range: bytes 1-{len(JPEG)}/{len(JPEG)}", status="206 Partial Content"),
    "206-lie": raw(
        JPEG[:-9], f"Content-Range: bytes 0-{len(JPEG) - 1}/{len(JPEG)}", status="206 Partial Content"
    ),
    "206-unknown": raw(JPEG, f"Content-Range: bytes 0-{len(JPEG) - 1}/*", status="206 Partial Content"),
    "206-huge": raw(JPEG, f"Content-Range: bytes 0-{'9' * 5000}/1", status="206 Partial Content"),
    "202": raw(JPEG, status="202 Accepted"),
    # where a redirect leads
    "to-latin-1": raw(b"", b"Location: /raw/caf\xe9", status="302 Found"),
    "to-utf-8": raw(b"", "Location: /raw/caf\u00e9", status="302 Found"),
    "to-latin-1-host": raw(b"", b"Location: http://caf\xe9.test/", status="302 Found"),
    "to-nul": raw(b"", "Location: /raw/a%00b", status="302 Found"),
    "caf%E9": raw(JPEG),
    "caf%C3%A9": raw(JPEG),
}


class Threats(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.count(path, self.headers.get("Host", ""))
        with suppress(OSError):  # the client may hang up, and should
            getattr(self, "get_" + path[1:].replace("-", "_").partition("/")[0], self.plain)(path)

    def plain(self, path: str) -> None:
        status, headers, body = PLAIN.get(path, (404, {}, b""))
        self.answer(status, {"Content-Length": str(len(body)), **headers}, body)

    def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def get_to_decoy(self, path: str) -> None:
        self.answer(
            302, {"Location": f"http://127.0.0.1:{self.server.decoy_port}/x", "Content-Length": "0"}, b""
        )

    def get_raw(self, path: str) -> None:
        self.wfile.write(RAW.get(path.removeprefix("/raw/"), raw(status="404 Not Found")))
        self.close_connection = True

    def get_many_bots(self, path: str) -> None:
        """Several headers, of which one speaks to us."""
        self.send_response(200)
        for value in (
            "otherbot: noindex",
            "googlebot: nofollow",
            "unavailable_after: Wed, 25 Jun 2031, NoImageAI",
        ):
            self.send_header("X-Robots-Tag", value)
        self.send_header("Content-Length", str(len(JPEG)))
        self.end_headers()
        self.wfile.write(JPEG)

    def get_rest(self, path: str) -> None:
        """/rest/N: for the host's first request 429 and a second's rest, then fine."""
        with self.server.lock:
            self.server.rests += 1
            first = self.server.rests == 1
        if first:
            self.answer(429, {"Retry-After": "1", "Content-Length": "0"}, b"")
        else:
            self.plain("/ok.jpg")

    def get_flaky(self, path: str) -> None:
        """Busy at first, then fine."""
        self.answer(503, {"Content-Length": "0"}, b"") if self.server.asked[path] == 1 else self.plain(
            "/ok.jpg"
        )

    def get_drip(self, path: str) -> None:
        """A byte now and then: never silent for long, never done."""
        self.answer(200, {"Content-Length": "1000"}, b"")
        for byte in JPEG:
            self.wfile.write(bytes([byte]))
            time.sleep(0.1)

    def get_silent(self, path: str) -> None:
        self.server.closing.wait(5)

    def get_stalled(self, path: str) -> None:
        self.answer(200, {"Content-Length": "1000"}, JPEG[:100])
        self.server.closing.wait(5)

    def get_endless(self, path: str) -> None:
        self.answer(200, {"Connection": "close"}, b"")
        for _ in range(2000):
            self.wfile.write(bytes(100_000))
            self.server.sent += 100_000

    def get_claims_much(self, path: str) -> None:
        self.answer(200, {"Content-Length": "1000000000000"}, JPEG)

    def get_hangs_up(self, path: str) -> None:
        self.answer(200, {"Content-Length": str(len(JPEG)), "Connection": "close"}, JPEG[:100])
        self.close_connection = True

    def get_garbage(self, path: str) -> None:
        self.wfile.write(b"what is http\r\n\r\n")
        self.close_connection = True

    def get_slow(self, path: str) -> None:
        """/slow/N: a picture, after a while; counts how many are here at once."""
        self.server.enter()
        time.sleep(0.05)
        self.server.leave()
        self.plain("/ok.jpg")

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, decoy_port: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), Threats)
        self.port = self.server_address[1]
        self.decoy_port = decoy_port
        self.asked: Counter[str] = Counter()
        self.closing = threading.Event()
        self.sent = self.here = self.most_here = self.rests = 0
        self.at: list[float] = []  # when each request came
        self.hosts: Counter[str] = Counter()
        self.lock = threading.Lock()

    def count(self, path: str, host: str) -> None:
        with self.lock:
            self.asked[path] += 1
            self.hosts[host] += 1
            self.at.append(time.monotonic())

    def enter(self) -> None:
        with self.lock:
            self.here += 1
            self.most_here = max(self.most_here, self.here)

    def leave(self) -> None:
        with self.lock:
            self.here -= 1


@dataclass(frozen=True, kw_only=True)
class LocalImages(FetchImages):
    """As the real stage, but these hosts are at ports that listen already."""

    list: ListFile = field(default_factory=ListFile)
    ports: dict[str, int]

    def loopback(self) -> AbstractContextManager[Mapping[str, int]]:
        return nullcontext(self.ports)
