"""A connection between a worker and the driver that carries lines of JSON."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.service import Address

MAX_LINE_BYTES = 1 << 24


class Line(asyncio.Protocol):
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


async def connect(where: Address, heard: Callable[[Any], None], lost: Callable[[], None]) -> Line:
    """Connects a worker to its step's service and returns the connection. Raises VlpipeError if the driver does not answer.

    heard: called with each message; lost: called once when the connection ends.
    """
    try:
        _, line = await asyncio.get_running_loop().create_connection(
            lambda: Line(heard, lost), where.host, where.port
        )
    except OSError as error:
        raise VlpipeError(
            f"the driver does not answer at {where.host}:{where.port} ({error.strerror or error}); "
            f"step {where.step!r} needs the driver for state that its workers share, such as limits per host; "
            "check that this machine can connect to that port"
        ) from error
    line.send([where.step, where.secret])
    return line
