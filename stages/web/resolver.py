"""Names to addresses: looked up and checked in one step, and what was checked is what is connected to.

A name cannot change its meaning between check and connection (DNS rebinding): the client gets addresses from here, looks
nothing up again, and checks once more what a socket is about to be connected to. Answers are kept for `DNS_CACHE_S`.
"""

from __future__ import annotations

import asyncio
import socket
from collections import OrderedDict
from typing import NamedTuple

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.web.address import is_public

DNS_CACHE_S = 300.0
MAX_NAMES = 100_000


class _Answer(NamedTuple):
    addresses: tuple[str, ...]
    fault: tuple[str, str] | None  # code and detail of a RowFault, when there is no address to ask
    until: float  # loop time


class CheckingResolver:
    """Looks a name up once for all who ask, and refuses it when one of its addresses is not public."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, asyncio.Task[_Answer]] = OrderedDict()

    async def addresses(self, host: str) -> tuple[str, ...]:
        """RowFault: dns, forbidden_address."""
        task = self._known.get(host)
        if task is None or (task.done() and task.result().until <= asyncio.get_running_loop().time()):
            task = self._known[host] = asyncio.ensure_future(_looked_up(host))
            self._known.move_to_end(host)
            if len(self._known) > MAX_NAMES:  # the oldest goes
                self._known.popitem(last=False)
        # One who gives up does not take it from the others.
        answer = task.result() if task.done() else await asyncio.shield(task)
        if answer.fault:
            raise RowFault(*answer.fault)
        return answer.addresses


async def _looked_up(host: str) -> _Answer:
    loop = asyncio.get_running_loop()
    try:
        infos = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # of names that IDNA does not know
        return _Answer((), ("dns", f"{host}: {error}"), loop.time() + DNS_CACHE_S)
    except OSError as error:
        kept_s = (
            DNS_CACHE_S if error.errno == socket.EAI_NONAME else 0.0
        )  # others, such as EAI_AGAIN, may pass
        said = error.strerror or type(error).__name__
        return _Answer((), ("dns", f"{host}: {said}"), loop.time() + kept_s)
    found = tuple(dict.fromkeys(str(info[4][0]) for info in infos))
    until = loop.time() + DNS_CACHE_S
    private = next((address for address in found if not is_public(address)), None)
    if private is not None:
        return _Answer((), forbidden(host, private), until)
    return _Answer(found, None, until)


def forbidden(host: str, address: str) -> tuple[str, str]:
    """Code and detail for an address that is not out on the internet."""
    return "forbidden_address", f"{host}: {address} is no public address"
