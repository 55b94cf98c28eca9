"""Which addresses a fetcher may connect to: public ones only, by our own list.

`ipaddress.is_global` is not used: its result for the same address differs between Python versions.
https://www.iana.org/assignments/iana-ipv4-special-registry and iana-ipv6-special-registry
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

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


@lru_cache(maxsize=100_000)  # called for each hop and each socket
def is_public(address: str | IPv4Address | IPv6Address) -> bool:
    """Whether the address is on the public internet. If an IPv6 address embeds an IPv4 address, that one decides."""
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
    """Whether the host is an IP address rather than a name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
