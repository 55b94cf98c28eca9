"""A server of everything that goes wrong on the web, and a decoy that nobody may ask."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `threat_server`

from threat_server import Server, noise


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
