"""One object per step that all its workers talk to: it lives in the driver, a worker holds a connection to it.

A lease is bound to its connection: when a worker dies its kernel hangs up, and what it held is free at once. The same
socket serves Ray workers on any node, isolated children (which Ray does not know) and `--local`; an actor would need leases
that expire, and Ray in every process. Lines of JSON; the first line of a connection is a secret of the run.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from threading import Event, Thread
from typing import Any, Protocol, TypeVar

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.storage.store import Store

HELLO_S = 10.0  # a stranger who says nothing is not kept for long
CLOSING_S = 0.005
MAX_LINE_BYTES = 1 << 24


T = TypeVar("T")


class Peer(Protocol):
    """One connection, as either end sees the other."""

    def send(self, message: Any) -> None: ...


class Service(Protocol):
    """What a stage returns from `service()`. Called in one asyncio loop only: be quick, block nowhere."""

    def heard(self, peer: Peer, message: Any) -> None:
        """`message` is plain JSON."""

    def left(self, peer: Peer) -> None:
        """The worker hung up, or died."""


class ServiceContext:
    """What a stage's service is made with. root: the run's root; None outside a run."""

    def __init__(self, root: Store | None = None) -> None:
        self.root = root
        self._made: dict[Any, Any] = {}

    def once(self, make: Callable[[Store | None], T]) -> T:
        """`make(root)`, called once in a run: services of several steps get the same object."""
        if make not in self._made:
            self._made[make] = make(self.root)
        made: T = self._made[make]
        return made


@dataclass(frozen=True, slots=True)
class Address:
    """Where a step's service answers; travels with each task."""

    host: str
    port: int
    step: str
    secret: str = field(repr=False)


_HERE: ContextVar[Address | None] = ContextVar("vlpipe_shared", default=None)


def address() -> Address | None:
    """For `Stage.open`: where this run's service is; None outside a run (`run_map`, a notebook)."""
    return _HERE.get()


@contextmanager
def at(where: Address | None) -> Iterator[None]:
    """While entered, `address()` is `where`."""
    token = _HERE.set(where)
    try:
        yield
    finally:
        _HERE.reset(token)


class _Line(asyncio.Protocol):
    """A connection that sends lines of JSON, and hears them until it is lost."""

    def __init__(self, heard: Callable[[Any], None], lost: Callable[[], None]) -> None:
        self.heard, self.lost = heard, lost
        self._rest = b""  # of a line that has not come whole
        self._transport: asyncio.Transport | None = None
        self._ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self._ended:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            try:
                message = json.loads(line)
            except ValueError:  # no worker of ours
                self.hang_up()
                return
            self.heard(message)
        if len(self._rest) > MAX_LINE_BYTES:
            self.hang_up()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost()

    def send(self, message: Any) -> None:
        if self._transport and not self._transport.is_closing():
            self._transport.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    def close(self) -> None:
        """When what was sent is on its way."""
        if self._transport:
            self._transport.close()

    def hang_up(self) -> None:
        """Also of a connection that is about to be made."""
        self._ended = True
        if self._transport:
            self._transport.abort()


async def connect(where: Address, heard: Callable[[Any], None], lost: Callable[[], None]) -> _Line:
    """A worker's end. `heard` gets each message, `lost` is called once when the driver hangs up."""
    try:
        _, line = await asyncio.get_running_loop().create_connection(
            lambda: _Line(heard, lost), where.host, where.port
        )
    except OSError as error:
        raise VlpipeError(
            f"the driver does not answer at {where.host}:{where.port} ({error.strerror or error}); "
            f"step {where.step!r} needs the driver for what its workers share, such as limits per host"
        ) from error
    line.send([where.step, where.secret])
    return line


class Services:
    """The driver's end, for all steps of a run: listens as soon as one of them has something to share."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._host = host
        self._secret = secrets.token_hex(16)
        self._services: dict[str, Service] = {}
        self._context: ServiceContext | None = None
        self._lines: set[_Line] = set()
        self._port = 0
        self._thread: Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing: asyncio.Event | None = None

    def address(
        self, step: str, make: Callable[[ServiceContext], Service | None], root: Store | None = None
    ) -> Address | None:
        """Where the step's service answers, made on the first call; None for a step that has none."""
        if step not in self._services:
            self._context = self._context or ServiceContext(root)
            service = make(self._context)
            if service is None:
                return None
            self._services[step] = service
        if self._thread is None:
            self._start()
        return Address(self._host, self._port, step, self._secret)

    def drop(self, step: str) -> None:
        self._services.pop(step, None)

    def close(self) -> None:
        if self._thread is not None and self._loop is not None and self._closing is not None:
            self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join()
            self._thread = None

    def _start(self) -> None:
        ready = Event()
        self._thread = Thread(target=lambda: asyncio.run(self._serve(ready)), name="shared", daemon=True)
        self._thread.start()
        if not ready.wait(HELLO_S):
            raise VlpipeError(
                f"cannot listen on {self._host}: the steps of this run that start a service need it"
            )

    async def _serve(self, ready: Event) -> None:
        self._loop, self._closing = asyncio.get_running_loop(), asyncio.Event()
        server = await self._loop.create_server(self._guest, self._host, 0)
        async with server:
            self._port = server.sockets[0].getsockname()[1]
            ready.set()
            await self._closing.wait()
            for wait_s in (
                0,
                CLOSING_S,
            ):  # then those that were being accepted, which nobody could close later
                await asyncio.sleep(wait_s)
                for line in self._lines.copy():
                    line.hang_up()

    def _guest(self) -> _Line:
        """Somebody connects: a worker, when the first line is what only a worker knows."""
        assert self._loop is not None
        line = _Line(lambda hello: self._welcome(line, too_late, hello), lambda: self._lines.discard(line))
        too_late = self._loop.call_later(HELLO_S, lambda: line.hang_up())
        self._lines.add(line)
        return line

    def _welcome(self, line: _Line, too_late: asyncio.TimerHandle, hello: Any) -> None:
        too_late.cancel()
        service = self._known(hello)
        if service is None:
            line.hang_up()
            return
        line.heard, line.lost = partial(service.heard, line), partial(self._left, service, line)

    def _left(self, service: Service, line: _Line) -> None:
        self._lines.discard(line)
        service.left(line)

    def _known(self, hello: Any) -> Service | None:
        if not (isinstance(hello, list) and len(hello) == 2 and all(isinstance(one, str) for one in hello)):
            return None
        step, secret = hello
        return (
            self._services.get(step) if hmac.compare_digest(secret.encode(), self._secret.encode()) else None
        )
