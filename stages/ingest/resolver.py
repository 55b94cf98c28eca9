"""Names to addresses: looked up and checked in one step, and what was checked is what is connected to.

A name cannot change its meaning between check and connection (DNS rebinding): the connector gets addresses from here and
looks nothing up again. It keeps them for `DNS_CACHE_S`; names that do not exist are kept here for as long.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping

from aiohttp.abc import AbstractResolver, ResolveResult

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.ingest.address import is_public
from vlpipe.stages.ingest.serve import LOOPBACK

DNS_CACHE_S = 300
MAX_UNKNOWN = 100_000  # names


class CheckingResolver(AbstractResolver):
    """Looks a name up, and refuses it when one of its addresses is not public.

    ports: host -> port on the loopback that answers for it, the one exemption.
    """

    def __init__(self, ports: Mapping[str, int]) -> None:
        self._ports = {host.lower(): port for host, port in ports.items()}
        self._unknown: dict[str, tuple[float, OSError]] = {}  # name -> until when, what was said

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        if host in self._ports:
            return [_resolved(host, LOOPBACK, self._ports[host], socket.AF_INET)]
        loop = asyncio.get_running_loop()
        until, said = self._unknown.get(host, (0.0, OSError()))
        if loop.time() < until:
            raise said
        try:
            infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, family=family)
        except socket.gaierror as error:
            if error.errno == socket.EAI_NONAME:  # others, such as EAI_AGAIN, may pass
                self._remember(host, loop.time() + DNS_CACHE_S, error)
            raise
        found = dict.fromkeys((str(info[4][0]), info[0]) for info in infos)
        for address, _ in found:
            need_public(address, host)
        return [_resolved(host, address, port, kind) for address, kind in found]

    def _remember(self, host: str, until: float, error: OSError) -> None:
        if len(self._unknown) >= MAX_UNKNOWN:
            self._unknown.clear()
        self._unknown[host] = (until, error)

    async def close(self) -> None:
        pass


def _resolved(name: str, address: str, port: int, family: int) -> ResolveResult:
    return ResolveResult(
        hostname=name, host=address, port=port, family=family, proto=0, flags=socket.AI_NUMERICHOST
    )


def need_public(address: str, host: str) -> None:
    """RowFault forbidden_address unless the address is out on the internet."""
    if not is_public(address):
        raise RowFault("forbidden_address", f"{host}: {address} is no public address")
