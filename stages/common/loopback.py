"""Serves folders on a loopback port while a stage runs, so that local files are fetched over real HTTP."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from mimetypes import guess_type
from threading import Thread
from urllib.parse import unquote

from vlpipe.pipeline.errors import VlpipeError

LOOPBACK = "127.0.0.1"


@contextmanager
def serving(folders: Mapping[str, str]) -> Iterator[dict[str, int]]:
    """Serves `folders` (host name -> folder) over HTTP; yields a dict of host name -> port on 127.0.0.1, the same for all.

    The path of a URL is a path below the folder of its host. Raises VlpipeError if a folder does not exist.
    """
    if not folders:
        yield {}
        return
    missing = [f"{host}: {folder}" for host, folder in folders.items() if not os.path.isdir(folder)]
    if missing:
        raise VlpipeError(f"`serve`: these folders do not exist: {', '.join(missing)}")
    with _Server({host.lower(): os.path.realpath(folder) for host, folder in folders.items()}) as server:
        thread = Thread(target=server.serve_forever, name="serve", daemon=True)
        thread.start()
        try:
            yield dict.fromkeys(folders, server.server_port)
        finally:
            server.shutdown()
            thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, roots: Mapping[str, str]) -> None:
        self.roots = roots
        super().__init__((LOOPBACK, 0), _Files)


class _Files(BaseHTTPRequestHandler):
    """Handler of one connection: serves files below the folder of the requested host."""

    protocol_version = "HTTP/1.1"  # keep-alive
    # Headers and the start of the body are sent together: as two small packets, the second waits for the client's delayed
    # acknowledgement (44 ms).
    wbufsize = 1 << 16
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        root = self.server.roots.get(host.lower())
        path = inside(root, unquote(self.path.partition("?")[0])) if root else None
        with suppress(ConnectionError):  # the client disconnected
            if path is None or not os.path.isfile(path):
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            with open(path, "rb") as file:
                self.send_response(HTTPStatus.OK)
                self.send_header("Content-Type", guess_type(path)[0] or "application/octet-stream")
                self.send_header("Content-Length", str(os.fstat(file.fileno()).st_size))
                self.end_headers()
                shutil.copyfileobj(file, self.wfile)

    def log_message(self, *_: object) -> None:
        """Writes no log."""


def inside(root: str, relative: str) -> str | None:
    """Returns the path of `relative`, whether it exists or not, or None if it is not below `root`.

    It is not if it is empty, contains a NUL, or leaves `root` by `..` or a symbolic link.
    """
    if "\x00" in relative:
        return None
    names = relative.lstrip("/").split("/")
    if not {"..", ".", ""} & set(names) and not os.path.islink(root):
        path = root
        for name in names:
            path = os.path.join(path, name)
            if os.path.islink(path):
                break
        else:
            return path  # the usual case, faster: `realpath` also stats every parent folder of `root`
    path = os.path.realpath(os.path.join(root, *names))
    return path if path.startswith(os.path.join(os.path.realpath(root), "")) else None


def leads_out(path: str, parameter: str) -> str:
    """Returns the error text for a path that `inside` refuses. parameter: the one that gives the folder."""
    text = f"the path {path!r} leads out of the folder given by `{parameter}`"
    is_plain = not path.startswith("/") and "\x00" not in path and ".." not in path.split("/")
    return f"{text}, by a symbolic link: put the file itself there" if is_plain else text
