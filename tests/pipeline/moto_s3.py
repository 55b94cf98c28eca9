"""An S3 server on the loopback, for tests: `from moto_s3 import s3, s3_server  # noqa: F401` and take `s3` as an argument.

Its address and credentials are in the environment, so that `vlpipe` in a process of its own finds it too. It takes one
request at a time: moto's threads look whether an object is there and then write it, so two conditional writes would both
succeed, which S3 promises not to do.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


@dataclass
class S3:
    """`requests`: (method, path with query) of each since it was cleared. `ignores_conditions`: as old S3-alikes do."""

    url: str = ""
    requests: list[tuple[str, str]] = field(default_factory=list)
    ignores_conditions: bool = False
    _one: threading.Lock = field(default_factory=threading.Lock)

    def new_root(self) -> str:
        """A root in a bucket of its own."""
        import fsspec

        bucket = f"b{uuid.uuid4().hex}"
        fsspec.filesystem("s3").mkdir(bucket)
        return f"s3://{bucket}/root"

    def around(self, app: App) -> App:
        def one_at_a_time(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
            with self._one:
                query = environ.get("QUERY_STRING", "")
                self.requests.append(
                    (environ["REQUEST_METHOD"], environ["PATH_INFO"] + (f"?{query}" if query else ""))
                )
                if self.ignores_conditions:
                    environ.pop("HTTP_IF_NONE_MATCH", None)
                return list(app(environ, start))

        return one_at_a_time


@contextmanager
def serving() -> Iterator[S3]:
    """An S3 server while the block lasts; the environment says where."""
    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )
    from werkzeug.serving import make_server

    class Quiet(MotoRequestHandler):  # type: ignore[misc]
        def log(self, type: str, message: str, *args: Any) -> None:
            """Nobody reads them."""

    found = S3()
    app = found.around(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    found.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    set_ = {
        "AWS_ENDPOINT_URL": found.url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    before = {name: os.environ.get(name) for name in set_}
    os.environ.update(set_)
    forget_others()
    try:
        yield found
    finally:
        forget_others()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        server.shutdown()
        thread.join()


def forget_others() -> None:
    """File systems are cached with their server's address."""
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3]:
    """One for each module that imports it."""
    with serving() as found:
        yield found


@pytest.fixture
def s3(s3_server: S3) -> Iterator[S3]:
    s3_server.requests.clear()
    yield s3_server
    s3_server.ignores_conditions = False
