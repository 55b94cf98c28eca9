"""A server of everything that goes wrong on the web, and a decoy that nobody may ask."""

from __future__ import annotations

import gzip
import io
import os
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


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


def bomb() -> bytes:
    """A PNG of 30,000 x 30,000 pixels in about 100 KB."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    body = b"".join(packer.compress(bytes(3751) * 100) for _ in range(300)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


JPEG = noise()
# Path -> status, headers, body; what needs more than that is in `Threats.do_GET`.
PLAIN: dict[str, tuple[int, dict[str, str], bytes]] = {
    "/ok.jpg": (200, {"Content-Type": "image/jpeg"}, JPEG),
    "/as-text": (200, {"Content-Type": "text/html"}, JPEG),
    "/gzipped": (200, {"Content-Encoding": "gzip"}, gzip.compress(JPEG)),
    "/gzip-bomb": (200, {"Content-Encoding": "gzip"}, gzip.compress(bytes(50_000_000))),
    "/gzip-cut": (200, {"Content-Encoding": "gzip"}, gzip.compress(JPEG)[:100]),
    "/brotli": (200, {"Content-Encoding": "br"}, b"\x0b\x02\x80abc"),
    "/html.jpg": (200, {"Content-Type": "image/jpeg"}, b"<!doctype html><p>gone"),
    "/truncated.jpg": (200, {}, JPEG[: len(JPEG) // 2]),
    "/animation.gif": (200, {}, animation()),
    "/bomb.png": (200, {}, bomb()),
    "/empty": (200, {}, b""),
    "/missing": (404, {}, b"no"),
    "/gone": (410, {}, b"no"),
    "/teapot": (418, {}, b"no"),
    "/broken": (500, {}, b"no"),
    "/busy": (429, {"Retry-After": "3600"}, b"later"),
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


class Threats(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.count(path)
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
        self.sent = self.here = self.most_here = 0
        self._lock = threading.Lock()

    def count(self, path: str) -> None:
        with self._lock:
            self.asked[path] += 1

    def enter(self) -> None:
        with self._lock:
            self.here += 1
            self.most_here = max(self.most_here, self.here)

    def leave(self) -> None:
        with self._lock:
            self.here -= 1


def running(server: Server) -> Iterator[Server]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def decoy() -> Iterator[Server]:
    """Listens on the loopback like any service of this machine, and remembers who asked."""
    yield from running(Server())


@pytest.fixture
def threats(decoy: Server) -> Iterator[Server]:
    yield from running(Server(decoy.port))


@pytest.fixture(scope="session")
def picture() -> Callable[..., bytes]:
    """picture(kind, size, seed): an encoded image of noise."""
    return noise


@pytest.fixture(scope="session")
def data() -> Callable[[str], Path]:
    """data(name): a file or folder of the real data, or the test is skipped."""
    root = Path(os.environ.get("VLPIPE_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))

    def find(name: str) -> Path:
        if not (root / name).exists():
            pytest.skip(f"real data not found: {root / name} (set VLPIPE_DATA)")
        return root / name

    return find
