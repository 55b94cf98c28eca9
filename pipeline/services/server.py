"""The driver's server for services. Each connection belongs to one step, which its first line names."""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import Callable
from functools import partial
from threading import Event, Thread
from typing import Any

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.service import Address, Service, ServiceContext
from vlpipe.pipeline.services.line import MAX_LINE_BYTES, Line
from vlpipe.pipeline.storage.store import Store

HELLO_S = (
    10.0  # seconds until a connection without a valid first line is closed; also the server's startup timeout
)
CLOSING_S = 0.005  # seconds between the two rounds of closing connections
MAX_HELLO_BYTES = 1 << 12  # of a first line, which anybody may send


class Services:
    """A `ServiceHost`: the server for the services of all steps of a run. It starts when the first step needs a service."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._host = host
        self._secret = secrets.token_hex(16)
        self._services: dict[str, Service] = {}
        self._context: ServiceContext | None = None
        self._lines: set[Line] = set()
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

    def _guest(self) -> Line:
        """Returns the protocol of a new connection, which is closed unless its first line holds the run's secret."""
        assert self._loop is not None
        line = Line(
            lambda hello: self._welcome(line, too_late, hello),
            lambda: self._lines.discard(line),
            MAX_HELLO_BYTES,
        )
        too_late = self._loop.call_later(HELLO_S, lambda: line.hang_up())
        self._lines.add(line)
        return line

    def _welcome(self, line: Line, too_late: asyncio.TimerHandle, hello: Any) -> None:
        too_late.cancel()
        service = self._known(hello)
        if service is None:
            line.hang_up()
            return
        line.max_bytes = MAX_LINE_BYTES
        line.heard, line.lost = partial(service.heard, line), partial(self._left, service, line)

    def _left(self, service: Service, line: Line) -> None:
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
