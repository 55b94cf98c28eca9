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
from threading import Event, Thread
from typing import Any, Protocol

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.opted_out import OptedOut
from vlpipe.pipeline.store import Store

HELLO_S = 10.0  # a stranger who says nothing is not kept for long
MAX_LINE_BYTES = 1 << 24


class Peer(Protocol):
    """One connection, as either end sees the other."""

    def send(self, message: Any) -> None: ...


class Service(Protocol):
    """What a stage returns from `shared()`. Called in one asyncio loop only: be quick, block nowhere."""

    def heard(self, peer: Peer, message: Any) -> None:
        """`message` is plain JSON."""

    def left(self, peer: Peer) -> None:
        """The worker hung up, or died."""


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


class _Line:
    """A connection that sends lines."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    def send(self, message: Any) -> None:
        if not self._writer.is_closing():
            self._writer.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    def close(self) -> None:
        self._writer.close()


async def connect(where: Address, heard: Callable[[Any], None], lost: Callable[[], None]) -> _Line:
    """A worker's end. `heard` gets each message, `lost` is called once when the driver hangs up."""
    try:
        reader, writer = await asyncio.open_connection(where.host, where.port, limit=MAX_LINE_BYTES)
    except OSError as error:
        raise VlpipeError(
            f"the driver does not answer at {where.host}:{where.port} ({error.strerror or error}); "
            f"step {where.step!r} needs it to keep its workers polite"
        ) from error
    line = _Line(writer)
    line.send([where.step, where.secret])
    line.reading = asyncio.ensure_future(_listen(reader, heard, lost))  # type: ignore[attr-defined]
    return line


async def _listen(
    reader: asyncio.StreamReader, heard: Callable[[Any], None], lost: Callable[[], None]
) -> None:
    try:
        while line := await reader.readline():
            heard(json.loads(line))
    except OSError:
        pass  # as good as the end of the stream: `lost` says so
    lost()


class Services:
    """The driver's end, for all steps of a run: listens as soon as one of them has something to share."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._host = host
        self._secret = secrets.token_hex(16)
        self._services: dict[str, Service] = {}
        self._opted_out: OptedOut | None = None
        self._port = 0
        self._thread: Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing: asyncio.Event | None = None

    def address(
        self, step: str, make: Callable[[OptedOut], Service | None], root: Store | None = None
    ) -> Address | None:
        """Where the step's service answers, made on the first call; None for a step that has none."""
        if step not in self._services:
            self._opted_out = self._opted_out or OptedOut(root)
            service = make(self._opted_out)
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
            raise VlpipeError(f"cannot listen on {self._host}: the run's workers could not be kept polite")

    async def _serve(self, ready: Event) -> None:
        self._loop, self._closing = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._welcome, self._host, 0, limit=MAX_LINE_BYTES)
        async with server:
            self._port = server.sockets[0].getsockname()[1]
            ready.set()
            await self._closing.wait()

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            service = self._known(await asyncio.wait_for(reader.readline(), HELLO_S))
            if service is None:
                return
            peer = _Line(writer)
            try:
                while line := await reader.readline():
                    service.heard(peer, json.loads(line))
            finally:
                service.left(peer)
        except (OSError, TimeoutError):
            pass  # a worker that died has nothing to be told
        finally:
            writer.close()

    def _known(self, hello: bytes) -> Service | None:
        try:
            step, secret = json.loads(hello)
        except ValueError:
            return None
        if not (isinstance(secret, str) and hmac.compare_digest(secret.encode(), self._secret.encode())):
            return None
        return self._services.get(step)
