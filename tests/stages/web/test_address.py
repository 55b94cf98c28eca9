"""Which addresses are public: one or more of every range that is not, and their neighbours that are."""

from __future__ import annotations

import asyncio

import pytest

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.web.address import CheckingResolver, is_public

PRIVATE = """
0.0.0.0 10.0.0.1 10.255.255.255 100.64.0.1 100.100.100.200 127.0.0.1 127.255.255.254 168.63.129.16
169.254.169.254
172.16.0.1 172.31.255.255 192.0.0.192 192.0.2.1 192.88.99.1 192.168.1.1 198.18.0.1 198.19.255.255 198.51.100.7
203.0.113.9 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255
:: ::1 ::127.0.0.1 100::1 64:ff9b:1::1 2001::1 2001:db8::1 2001:2::1 3fff::1 5f00::1 fc00::1 fd00:ec2::254
fe80::1 fe80::1%eth0 fec0::1 ff02::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 2002:7f00:1::1 2002:a9fe:a9fe::1
64:ff9b::10.0.0.1
64:ff9b::169.254.169.254
"""
PUBLIC = """
1.1.1.1 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 169.253.255.255
172.15.255.255
172.32.0.0 192.167.255.255 198.17.255.255 198.20.0.0 223.255.255.255 168.63.129.17
2001:4860:4860::8888 2606:4700::1111 2a00:1450::1 ::ffff:1.1.1.1 2002:101:101::1 64:ff9b::1.1.1.1
"""


@pytest.mark.parametrize("address", PRIVATE.split())
def test_inside(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC.split())
def test_outside(address: str) -> None:
    assert is_public(address)


def test_a_name_is_refused_when_any_of_its_addresses_is_inside() -> None:
    with pytest.raises(RowFault, match=r"^forbidden_address: localhost: (127|::1)"):
        asyncio.run(_addresses("localhost"))


def test_every_address_of_a_name_is_passed_on() -> None:
    """The client connects to these and looks nothing up again."""
    assert asyncio.run(_addresses("1.1.1.1")) == ("1.1.1.1",)


async def _addresses(host: str) -> tuple[str, ...]:
    return await CheckingResolver().addresses(host)
