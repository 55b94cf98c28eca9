"""Services: objects in the driver, one per step, that share state among the step's workers, such as limits per host.

Workers connect over TCP. When a worker dies, the kernel closes its connection, and the service releases what the worker
held at once. The same server works for Ray workers on any node, for isolated child processes (unknown to Ray) and for
`--local`; a Ray actor would need timeouts to detect a dead worker, and Ray in every process. Messages are lines of JSON;
the first line of a worker is [step, secret of the run].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from vlpipe.pipeline.storage.store import Store

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


class ServiceHost(Protocol):
    """The driver's server for the services of all steps of a run; `services.server` has one."""

    def address(
        self, step: str, make: Callable[[ServiceContext], Service | None], root: Store | None = None
    ) -> Address | None:
        """Returns the address of the step's service, made on the first call; None if the step has no service."""

    def drop(self, step: str) -> None:
        """Removes a step's service; open connections to it are kept."""

    def close(self) -> None:
        """Closes all connections and stops the server."""
