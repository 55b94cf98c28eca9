"""Resolves host names and checks the addresses in one step; connections go to exactly the addresses checked.

This prevents DNS rebinding (a name that resolves differently after the check): the client takes addresses from here, never
resolves again, and checks each address once more when a socket is created. Answers are cached for `DNS_CACHE_S`.
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
    fault: tuple[str, str] | None  # code and detail of a RowFault, if there is no usable address
    until: float  # loop time in s at which the entry expires


class CheckingResolver:
    """Resolves a name once for all callers, and refuses it if any of its addresses is not public."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, asyncio.Task[_Answer]] = OrderedDict()

    async def addresses(self, host: str) -> tuple[str, ...]:
        """Returns the addresses of a host, at least one. Raises RowFault: dns (there is none), forbidden_address."""
        task = self._known.get(host)
        if task is None or (task.done() and task.result().until <= asyncio.get_running_loop().time()):
            task = self._known[host] = asyncio.ensure_future(_looked_up(host))
            self._known.move_to_end(host)
            if len(self._known) > MAX_NAMES:  # drop the oldest
                self._known.popitem(last=False)
        # Shielded: a caller that is cancelled does not cancel the lookup for the others.
        answer = task.result() if task.done() else await asyncio.shield(task)
        if answer.fault:
            raise RowFault(*answer.fault)
        return answer.addresses


async def _looked_up(host: str) -> _Answer:
    loop = asyncio.get_running_loop()
    try:
        infos = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # names that IDNA cannot encode
        return _Answer((), ("dns", f"{host}: {error}"), loop.time() + DNS_CACHE_S)
    except OSError as error:
        kept_s = (
            DNS_CACHE_S if error.errno == socket.EAI_NONAME else 0.0
        )  # other errors, such as EAI_AGAIN, may be temporary
        message = error.strerror or type(error).__name__
        return _Answer((), ("dns", f"{host}: {message}"), loop.time() + kept_s)
    found = tuple(dict.fromkeys(str(info[4][0]) for info in infos))
    until = loop.time() + DNS_CACHE_S
    private = next((address for address in found if not is_public(address)), None)
    if private is not None:
        return _Answer((), forbidden(host, private), until)
    return _Answer(found, None, until)


def forbidden(host: str, address: str) -> tuple[str, str]:
    """Returns the code and detail of the RowFault for an address that is not public."""
    return "forbidden_address", f"{host}: {address} is not a public address"
