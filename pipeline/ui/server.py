"""The HTTP server of `vlpipe ui`: the standard library's, on 127.0.0.1, one thread per request, reading only.

`http.server` is enough: one user, a few dozen small answers, no upload, no session; so the page needs no web framework and
starts with the command. What a request may ask is decided in `guard`, what it gets in `site`.
"""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.ui.guard import HEADERS, new_token, refusal
from vlpipe.pipeline.ui.site import Answer, Site, text_answer

HOST = "127.0.0.1"
MAX_AT_ONCE = 12  # requests answered at once; others wait
IDLE_S = 30.0  # a connection without a request is closed


class UiServer(ThreadingHTTPServer):
    """Serves a site. port: 0 for any free one. Raises VlpipeError if the port is taken."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, site: Site, port: int = 0, token: str = "") -> None:
        self.site = site
        self.token = token or new_token()
        self.slots = threading.BoundedSemaphore(MAX_AT_ONCE)
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise VlpipeError(
                f"cannot listen on {HOST}:{port} ({error.strerror}); give another --port, or none for a free one"
            ) from error

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing: a browser that leaves a page closes its connections."""


class _Handler(BaseHTTPRequestHandler):
    server: UiServer
    protocol_version = "HTTP/1.1"
    timeout = IDLE_S
    server_version = "vlpipe"
    sys_version = ""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.close_connection = True  # its body is not read
        self._answer()

    do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_POST

    def _answer(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        why = refusal(self.command, self.path, headers, self.server.port, self.server.token)
        if why is not None:
            self._send(text_answer(why.status, why.text))
            return
        with self.server.slots:
            answer = self.server.site.answer(self.path.removeprefix(f"/{self.server.token}"), headers)
        self._send(answer)

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in {**HEADERS, **answer.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Type", answer.kind)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def log_message(self, format: str, *args: Any) -> None:
        """Logs nothing: paths contain the token."""
