"""A fast HTTP server on the loopback, in a process of its own: files of a folder by name, and planted faults by path.

    python benchmarks/image_server.py FOLDER      # prints its port; ends when its standard input does

/photos/NAME?anything: that file. /KIND/anything: see KINDS.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO


def answer(status: str, body: bytes, *headers: str, length: int | None = None) -> bytes:
    lines = [
        f"HTTP/1.1 {status}",
        f"Content-Length: {len(body) if length is None else length}",
        *headers,
        "",
        "",
    ]
    return "\r\n".join(lines).encode() + body


def kinds(image: bytes) -> dict[str, bytes | None]:
    """Path -> what is answered; None: nothing, ever. A body shorter than its length is followed by a hang-up."""
    return {
        "good": answer("200 OK", image, "Content-Type: image/jpeg"),
        "http_404": answer("404 Not Found", b"gone"),
        "http_410": answer("410 Gone", b"gone"),
        "http_500": answer("500 Internal Server Error", b"oops"),
        "truncated": answer("200 OK", image[: len(image) // 2], "Content-Type: image/jpeg"),
        "not_an_image": answer("200 OK", b"<!doctype html><p>not here", "Content-Type: image/jpeg"),
        "empty": answer("200 OK", b""),
        "opt_out": answer(
            "200 OK", image, "X-Robots-Tag: otherbot: nofollow", "X-Robots-Tag: noimageai, noai"
        ),
        "too_many_redirects": answer("302 Found", b"", "Location: ?again"),
        "forbidden_address": answer("302 Found", b"", "Location: http://169.254.169.254/latest/meta-data"),
        "too_large": answer("200 OK", b"x", length=10**12),
        "disconnected": answer("200 OK", image[:100], length=len(image)),
        "timeout": None,
    }


class Requests(asyncio.Protocol):
    def __init__(self, folder: Path, fixed: dict[str, bytes | None], asked: Counter[str]) -> None:
        self._folder, self._fixed, self._asked = folder, fixed, asked
        self._cache: dict[str, bytes] = {}
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        *requests, self._rest = (self._rest + data).split(b"\r\n\r\n")
        for request in requests:
            path = request.split(b" ", 2)[1].decode("latin-1").partition("?")[0]
            _, kind, name = (path + "//").split("/", 2)
            self._asked[kind] += 1
            self._reply(kind, name.rstrip("/"))

    def _reply(self, kind: str, name: str) -> None:
        if kind == "photos":
            self._transport.write(self._photo(name))
        elif kind == "asked":
            self._transport.write(answer("200 OK", json.dumps(self._asked).encode()))
        elif (said := self._fixed.get(kind, answer("404 Not Found", b""))) is not None:
            self._transport.write(said)
            if kind in ("too_large", "disconnected"):
                self._transport.close()

    def _photo(self, name: str) -> bytes:
        return answer("200 OK", (self._folder / name).read_bytes(), "Content-Type: image/jpeg")


async def serve(folder: Path) -> None:
    image = min(folder.rglob("*.jpg"), key=lambda path: (path.stat().st_size, path.name)).read_bytes()
    fixed, asked = kinds(image), Counter[str]()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Requests(folder, fixed, asked), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    os._exit(0)


@contextlib.contextmanager
def image_server(folder: Path, core: int | None = None) -> Iterator[int]:
    """The port, while it runs; pinned to one core where it is given."""
    command = [sys.executable, __file__, str(folder)]
    pin = ["taskset", "-c", str(core)] if core is not None else []
    with subprocess.Popen(
        [*pin, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        lines: IO[str] | None = process.stdout
        assert lines
        try:
            yield int(lines.readline())
        finally:
            process.kill()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
