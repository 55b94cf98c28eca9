"""One object for all workers: who may talk to it, what it hears, and that a death is a hang-up."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from vlpipe.pipeline import service
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.service import Address, Peer
from vlpipe.pipeline.services.line import connect
from vlpipe.pipeline.services.server import Services
from vlpipe.stages.web.opted_out import OptedOut

WORKER = """
import asyncio, sys, time
from vlpipe.pipeline.service import Address
from vlpipe.pipeline.services.line import connect
async def main():
    line = await connect(Address(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]), print, print)
    line.send("here")
    await asyncio.sleep(60)
asyncio.run(main())
"""


class Echo:
    """Answers with what it heard and how many are there."""

    def __init__(self) -> None:
        self.peers: set[Peer] = set()
        self.num_left = 0

    def heard(self, peer: Peer, message: Any) -> None:
        self.peers.add(peer)
        peer.send([message, len(self.peers)])

    def left(self, peer: Peer) -> None:
        self.peers.discard(peer)
        self.num_left += 1


def echo(_: OptedOut) -> Echo:
    return Echo()


@pytest.fixture
def services() -> Iterator[Services]:
    one = Services()
    yield one
    one.close()


def ask(where: Address, *messages: Any) -> list[Any]:
    async def talk() -> list[Any]:
        heard: asyncio.Queue[Any] = asyncio.Queue()
        line = await connect(where, heard.put_nowait, lambda: heard.put_nowait("lost"))
        for message in messages:
            line.send(message)
        got = [await asyncio.wait_for(heard.get(), 10) for _ in messages]
        line.close()
        return got

    return asyncio.run(talk())


def wait_for(condition: Any) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_each_step_has_its_own(services: Services) -> None:
    a, b = services.address("a", echo), services.address("b", echo)
    assert a is not None
    assert b is not None
    assert a.port == b.port
    assert services.address("a", echo) == a
    assert ask(a, {"x": [1, None, "\u00e9"]}, 2) == [[{"x": [1, None, "\u00e9"]}, 1], [2, 1]]
    assert services.address("none", lambda _: None) is None


def test_a_step_without_one_starts_nothing() -> None:
    services = Services()
    assert services.address("none", lambda _: None) is None
    assert services._thread is None
    services.close()


def test_a_worker_that_is_killed_has_left(services: Services) -> None:
    one = Echo()
    where = services.address("a", lambda _: one)
    assert where is not None
    command = [sys.executable, "-c", WORKER, where.host, str(where.port), where.step, where.secret]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as worker:
        wait_for(lambda: len(one.peers) == 1)
        worker.kill()
        wait_for(lambda: not one.peers)
    assert one.num_left == 1


def test_strangers_are_not_heard(services: Services) -> None:
    one = Echo()
    where = services.address("a", lambda _: one)
    assert where is not None
    assert ask(replace(where, secret="guessed"), 1) == ["lost"]
    assert ask(replace(where, step="b"), 1) == ["lost"]
    with socket.create_connection((where.host, where.port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n")
        assert stranger.recv(100) == b""
    assert not one.num_left
    assert where.secret not in repr(where)


@pytest.mark.parametrize(
    "said",
    [b"x" * 8192, b'["a", "' + b"y" * 8192 + b'"]\n', b"[" * 3000 + b"\n", b'["a", "\\ud800"]\n'],
    ids=["no end", "long", "deep", "surrogate"],
)
def test_a_stranger_s_first_line_is_short(
    services: Services, said: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    where = services.address("a", lambda _: Echo())
    assert where is not None
    with socket.create_connection((where.host, where.port), 5) as stranger:
        stranger.sendall(said)
        with suppress(ConnectionError):
            assert stranger.recv(100) == b""
    assert ask(where, 1) == [[1, 1]]
    assert "Traceback" not in capfd.readouterr().err


def test_a_driver_that_is_gone(services: Services) -> None:
    where = services.address("a", echo)
    assert where is not None
    lost: list[int] = []

    async def talk() -> None:
        await connect(where, print, lambda: lost.append(1))
        await asyncio.to_thread(services.close)
        while not lost:
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(talk(), 20))
    assert lost == [1]
    with pytest.raises(
        VlpipeError, match=r"the driver does not answer at 127.0.0.1:\d+ \(.*\); step 'a' needs the driver"
    ):
        ask(where, 1)


def test_a_stage_finds_its_address_while_it_is_opened(services: Services) -> None:
    where = services.address("a", echo)
    assert service.address() is None
    with service.at(where):
        assert service.address() == where
    assert service.address() is None
