"""Which addresses a fetcher may connect to: public ones only, by our own list. Names are resolved and checked in one step.

Connections go to exactly the addresses checked. This prevents DNS rebinding (a name that resolves differently after the
check): the client takes addresses from here, never resolves again, and checks each address once more when a socket is
created. Answers are cached for `DNS_CACHE_S`.
`ipaddress.is_global` is not used: its result for the same address differs between Python versions.
https://www.iana.org/assignments/iana-ipv4-special-registry and iana-ipv6-special-registry
"""

from __future__ import annotations

import asyncio
import socket
from collections import OrderedDict
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import NamedTuple

from vlpipe.pipeline.errors import RowFault

NOT_PUBLIC_V4 = tuple(
    IPv4Network(net)
    for net in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier NAT; Alibaba's metadata service
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's host agent: formally public, but internal
        "169.254.0.0/16",  # link-local; the metadata service of most clouds
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
PUBLIC_V6 = IPv6Network("2000::/3")
NOT_PUBLIC_V6 = tuple(
    IPv6Network(net)
    for net in (
        "2001::/23",  # protocol assignments, including Teredo
        "2001:db8::/32",
        "3fff::/20",
    )
)
SIX_TO_FOUR = IPv6Network("2002::/16")
NAT64 = IPv6Network("64:ff9b::/96")

DNS_CACHE_S = 300.0
MAX_NAMES = 100_000


@lru_cache(maxsize=100_000)  # called for each hop and each socket
def is_public(address: str | IPv4Address | IPv6Address) -> bool:
    """Returns whether the address is on the public internet. If an IPv6 address embeds an IPv4 address, that one decides."""
    if isinstance(address, str):
        if "%" in address:  # a zone id: link-local
            return False
        address = ip_address(address)
    if isinstance(address, IPv6Address):
        inner = carried_v4(address)
        if inner is None:
            return address in PUBLIC_V6 and not any(address in net for net in NOT_PUBLIC_V6)
        address = inner
    return not any(address in net for net in NOT_PUBLIC_V4)


def carried_v4(address: IPv6Address) -> IPv4Address | None:
    """Returns the IPv4 address embedded in an IPv4-mapped, 6to4 or NAT64 address, else None."""
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in SIX_TO_FOUR:
        return IPv4Address(int(address) >> 80 & 0xFFFFFFFF)
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return None


@lru_cache(maxsize=100_000)
def is_literal(host: str) -> bool:
    """Returns whether the host is an IP address rather than a name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


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
