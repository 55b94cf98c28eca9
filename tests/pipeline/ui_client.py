"""A root with the toys of `look_at`, and a server over it that is asked as a browser or an attacker would ask."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from vlpipe.pipeline.storage.store import Store
from vlpipe.pipeline.ui.server import UiServer
from vlpipe.pipeline.ui.views import make_server


@dataclass(frozen=True)
class Client:
    server: UiServer

    def raw(
        self, target: str, method: str = "GET", **headers: str
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Sends exactly this path; `Host` is the server's own unless given. Returns status, headers, body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=20)
        try:
            connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            named = {"Host": f"127.0.0.1:{self.server.port}"} | {
                k.replace("_", "-"): v for k, v in headers.items()
            }
            for name, value in named.items():
                connection.putheader(name, value)
            connection.endheaders()
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def get(self, view: str, root: int = 0, status: int = 200, **params: Any) -> Any:
        """Returns a view's JSON."""
        found, _, body = self.raw(f"/{self.server.token}/api/{root}/{view}?{urlencode(params, doseq=True)}")
        assert found == status, body
        return json.loads(body)

    def folder(self, name: str, root: int = 0) -> str:
        return str(next(s["folder"] for s in self.get("run", root)["steps"] if s["name"] == name))


@contextmanager
def serving(*roots: Path) -> Iterator[Client]:
    with make_server([Store(str(root)) for root in roots]) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield Client(server)
        finally:
            server.shutdown()
            thread.join()
