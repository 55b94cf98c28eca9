"""Checks listed URLs (scheme, host, current addresses) for an external fetcher that checks nothing itself."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit, urlunsplit

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.common.loopback import LOOPBACK
from vlpipe.stages.web.address import is_public
from vlpipe.stages.web.url import sendable


def allowed(urls: Sequence[str], ports: Mapping[str, int], concurrency: int) -> list[str | RowFault]:
    """Returns for each URL the one to send, or a RowFault: bad_url, no_url, dns, forbidden_address.

    ports: host -> loopback port that serves it; a URL of such a host becomes one of this port, and its address is not
    checked. concurrency: max concurrent DNS lookups.
    """
    safe = [_sendable(url) for url in urls]
    hosts = {_host(url) for url in safe if isinstance(url, str)} - set(ports)
    with ThreadPoolExecutor(concurrency) as pool:
        faults = dict(zip(hosts, pool.map(address_fault, hosts), strict=True))

    def judged(url: str | RowFault) -> str | RowFault:
        if isinstance(url, RowFault):
            return url
        host = _host(url)
        return _on_loopback(url, ports[host]) if host in ports else faults[host] or url

    return [judged(url) for url in safe]


def _sendable(url: str) -> str | RowFault:
    try:
        return sendable(url)
    except RowFault as fault:
        return fault


def _host(url: str) -> str:
    return urlsplit(url).hostname or ""


def _on_loopback(url: str, port: int) -> str:
    return urlunsplit(urlsplit(url)._replace(scheme="http", netloc=f"{LOOPBACK}:{port}"))


def address_fault(host: str) -> RowFault | None:
    """Returns a RowFault if a host has no address (dns) or one that is not public (forbidden_address), else None."""
    try:
        infos = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # names that IDNA cannot encode
        return RowFault("dns", f"{host}: {error}")
    except OSError as error:
        return RowFault("dns", f"{host}: {error.strerror or type(error).__name__}")
    private = next((a for a in (str(info[4][0]) for info in infos) if not is_public(a)), None)
    return RowFault("forbidden_address", f"{host}: {private} is not a public address") if private else None
