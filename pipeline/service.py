"""Services: objects in the driver, one per step, that share state among the step's workers, such as limits per host.

Workers connect over TCP. When a worker dies, the kernel closes its connection, and the service releases what the worker
held at once. The same server works for Ray workers on any node, for isolated child processes (unknown to Ray) and for
`--local`; a Ray actor would need timeouts to detect a dead worker, and Ray in every process. Messages are lines of JSON;
the first line of a worker is [step, secret of the run].
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

HELLO_S = (
    10.0  # seconds until a connection without a valid first line is closed; also the server's startup timeout
)
CLOSING_S = 0.005  # seconds between the two rounds of closing connections
MAX_LINE_BYTES = 1 << 24
MAX_HELLO_BYTES = 1 << 12  # of a first line, which anybody may send


T = TypeVar("T")


class Peer(Protocol):
    """A connected worker. send: sends it a message, which must be a JSON value."""

    def send(self, message: Any) -> None: ...


class Service(Protocol):
    """The object a stage returns from `service()`. Its methods run in one asyncio loop and must not block."""

    def heard(self, peer: Peer, message: Any) -> None:
        """Called for each message of a worker. message: parsed JSON."""

    def left(self, peer: Peer) -> None:
        """Called when a worker closes its connection or dies."""


class ServiceContext:
    """Argument of `MapStage.service`. root: the run's root; None outside a run."""

    def __init__(self, root: Store | None = None) -> None:
        self.root = root
        self._made: dict[Any, Any] = {}

    def once(self, make: Callable[[Store | None], T]) -> T:
        """Returns `make(root)`, which is called once per run: all steps that pass the same function share one object."""
        if make not in self._made:
            self._made[make] = make(self.root)
        made: T = self._made[make]
        return made


@dataclass(frozen=True, slots=True)
class Address:
    """Network address of a step's service; sent along with each task."""

    host: str
    port: int
    step: str
    secret: str = field(repr=False)


_HERE: ContextVar[Address | None] = ContextVar("vlpipe_shared", default=None)


def address() -> Address | None:
    """Returns the address of this step's service, for use in `open`; None outside a run (`run_map`, a notebook)."""
    return _HERE.get()


@contextmanager
def at(where: Address | None) -> Iterator[None]:
    """Context manager in which `address()` returns `where`."""
    token = _HERE.set(where)
    try:
        yield
    finally:
        _HERE.reset(token)


class _Line(asyncio.Protocol):
    """A connection that sends and receives lines of JSON, of at most `max_bytes` each, else it is closed.

    `heard` gets each message; `lost` is called at its end.
    """

    def __init__(
        self, heard: Callable[[Any], None], lost: Callable[[], None], max_bytes: int = MAX_LINE_BYTES
    ) -> None:
        self.heard, self.lost, self.max_bytes = heard, lost, max_bytes
        self._rest = b""  # start of a line whose end has not arrived yet
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
                if len(line) > self.max_bytes:
                    raise ValueError(f"a message has {len(line)} bytes, the limit is {self.max_bytes}")
                message = json.loads(line)
            except (ValueError, RecursionError):  # not from a worker of this run
                self.hang_up()
                return
            self.heard(message)
        if len(self._rest) > self.max_bytes:
            self.hang_up()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost()

    def send(self, message: Any) -> None:
        if self._transport and not self._transport.is_closing():
            self._transport.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    def close(self) -> None:
        """Closes the connection after buffered data is sent."""
        if self._transport:
            self._transport.close()

    def hang_up(self) -> None:
        """Aborts the connection at once, or as soon as it is made."""
        self._ended = True
        if self._transport:
            self._transport.abort()


async def connect(where: Address, heard: Callable[[Any], None], lost: Callable[[], None]) -> _Line:
    """Connects a worker to its step's service and returns the connection. Raises VlpipeError if the driver does not answer.

    heard: called with each message; lost: called once when the connection ends.
    """
    try:
        _, line = await asyncio.get_running_loop().create_connection(
            lambda: _Line(heard, lost), where.host, where.port
        )
    except OSError as error:
        raise VlpipeError(
            f"the driver does not answer at {where.host}:{where.port} ({error.strerror or error}); "
            f"step {where.step!r} needs the driver for state that its workers share, such as limits per host; "
            "check that this machine can connect to that port"
        ) from error
    line.send([where.step, where.secret])
    return line


class Services:
    """The driver's server for the services of all steps of a run. It starts when the first step needs a service."""

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
        """Returns the address of the step's service, made on the first call; None if the step has no service.

        Raises VlpipeError if the server does not start within `HELLO_S` seconds.
        """
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
        """Removes a step's service; open connections to it are kept."""
        self._services.pop(step, None)

    def close(self) -> None:
        """Closes all connections and stops the server."""
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
                f"the server for state that workers share did not start on {self._host} within {HELLO_S:.0f} s; "
                "check that it is an address of this machine"
            )

    async def _serve(self, ready: Event) -> None:
        self._loop, self._closing = asyncio.get_running_loop(), asyncio.Event()
        server = await self._loop.create_server(self._guest, self._host, 0)
        async with server:
            self._port = server.sockets[0].getsockname()[1]
            ready.set()
            await self._closing.wait()
            # The second round closes connections that were still being accepted in the first.
            for wait_s in (0, CLOSING_S):
                await asyncio.sleep(wait_s)
                for line in self._lines.copy():
                    line.hang_up()

    def _guest(self) -> _Line:
        """Returns the protocol of a new connection, which is closed unless its first line holds the run's secret."""
        assert self._loop is not None
        line = _Line(
            lambda hello: self._welcome(line, too_late, hello),
            lambda: self._lines.discard(line),
            MAX_HELLO_BYTES,
        )
        too_late = self._loop.call_later(HELLO_S, lambda: line.hang_up())
        self._lines.add(line)
        return line

    def _welcome(self, line: _Line, too_late: asyncio.TimerHandle, hello: Any) -> None:
        too_late.cancel()
        service = self._known(hello)
        if service is None:
            line.hang_up()
            return
        line.max_bytes = MAX_LINE_BYTES
        line.heard, line.lost = partial(service.heard, line), partial(self._left, service, line)

    def _left(self, service: Service, line: _Line) -> None:
        self._lines.discard(line)
        service.left(line)

    def _known(self, hello: Any) -> Service | None:
        if not (isinstance(hello, list) and len(hello) == 2 and all(isinstance(one, str) for one in hello)):
            return None
        step, secret = hello
        return (
            self._services.get(step)
            if hmac.compare_digest(secret.encode("utf-8", "surrogatepass"), self._secret.encode())
            else None
        )
