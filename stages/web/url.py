"""Makes listed URLs safe to send, or rejects them with a reason; strips secrets from URLs before they are stored."""

from __future__ import annotations

import html
import ipaddress
import re
import socket
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote, urljoin

from vlpipe.pipeline.engine.records.forgotten import split_url
from vlpipe.pipeline.errors import RowFault

PORTS = {"http": 80, "https": 443}
MAX_URL_CHARS = 8000
WEB_PORTS = (443, *range(80, 91))  # allowed ports below 1024: those used by web servers
# Characters of a path or query that are not percent-encoded. `%` is kept, as it is part of an encoding.
KEPT = "%/:?@!$&'()*+,;=-._~[]|"
# Matches URLs with nothing to encode and no port (nearly all): accepted in 1 microsecond instead of 5.
PLAIN = re.compile(
    r"https?://([a-z0-9_.-]+)/[A-Za-z0-9%/:@!$&'()*+,;=._~\[\]|-]*(\?[A-Za-z0-9%/:?@!$&'()*+,;=._~\[\]|-]+)?"
)
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
RAW_BYTE = re.compile(r"[\udc80-\udcff]")
ENTITY = re.compile(r"&(?:[A-Za-z][A-Za-z0-9]{1,31}|#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6});")
SECRET = re.compile(
    r"x-(amz|goog|ms|oss|cos)-.*|(aws)?accesskeyid|googleaccessid|ossaccesskeyid|signature|sig|hmac"
    r"|key-pair-id|policy|expires|access_?token|auth|auth_?token|token|api_?key|key|jwt|session_?id"
    r"|password|passwd|secret|credential|hdnea|__gda__|oh|oe|_nc_ohc",
    re.IGNORECASE,
)


class Target(NamedTuple):
    """A URL as sent (from `sendable`), with its host and port."""

    url: str
    host: str  # an IPv6 address without brackets
    port: int


def target_of(sent: str) -> Target:
    """Returns the Target of a URL from `sendable`."""
    scheme, _, rest = sent.partition("://")
    name, colon, port = rest.partition("/")[0].rpartition(":")
    if not colon or port.endswith("]"):  # the colon is part of an IPv6 address
        name, port = rest.partition("/")[0], str(PORTS[scheme])
    return Target(sent, name.strip("[]"), int(port))


def sendable(url: str) -> str:
    """Returns the URL as it is sent: in ASCII, with path and query percent-encoded. Raises RowFault: no_url, bad_url."""
    url = url.strip(" \t\r\n\f")
    if not url:
        raise RowFault("no_url", "the URL is empty")
    if len(url) > MAX_URL_CHARS:
        raise RowFault("bad_url", f"the URL has {len(url)} characters, the limit is {MAX_URL_CHARS}")
    plain = PLAIN.fullmatch(url)
    if plain:
        _host(plain[1])
        return url
    odd = CONTROL.search(url)
    if odd:
        what = "control characters" if odd[0] < "\ud800" else "lone surrogates, which cannot be encoded"
        raise RowFault("bad_url", f"the URL has {what}")
    try:
        parts = split_url(url)
        port = parts.port
    except ValueError as error:
        raise RowFault("bad_url", str(error)) from error
    if parts.scheme not in PORTS:
        raise RowFault(
            "bad_url", f"the URL has the scheme {parts.scheme[:20]!r}; only http and https are fetched"
        )
    if "@" in parts.netloc or "\\" in parts.netloc:
        raise RowFault("bad_url", "the URL has a user name or a backslash before the host")
    if port is not None and port < 1024 and port not in WEB_PORTS:
        raise RowFault("bad_url", f"port {port} is reserved for other services")
    netloc = _host(parts.hostname or "") + (f":{port}" if port is not None else "")
    query = f"?{quote(parts.query, KEPT)}" if parts.query else ""
    return f"{parts.scheme}://{netloc}{quote(parts.path or '/', KEPT)}{query}"


@lru_cache(maxsize=100_000)  # a list repeats the same hosts
def _host(host: str) -> str:
    """Returns the host in ASCII, as it is sent (an IPv6 address in brackets). Raises RowFault: bad_url."""
    if ":" in host:
        return f"[{_literal_v6(host)}]"
    if not host.isascii():
        host = _punycode(host)
    if _is_v4(host):
        return host
    labels = host.removesuffix(".").split(".")  # resolvers reject empty labels
    if not re.fullmatch(r"[a-z0-9_.-]{1,253}\.?", host) or not all(1 <= len(one) <= 63 for one in labels):
        raise RowFault("bad_url", f"{host[:80]!r} is not a host name")
    return host


def _literal_v6(host: str) -> str:
    try:
        if "%" in host:
            raise ValueError("zone ids are not allowed")
        return str(ipaddress.IPv6Address(host))
    except ValueError as error:
        raise RowFault("bad_url", f"{host[:80]!r} is not an IPv6 address: {error}") from error


def _is_v4(host: str) -> bool:
    """Returns whether the host is an IPv4 address of four numbers.

    Raises RowFault (bad_url) for other notations (127.1, 0x7f.1, 2130706433), because parsers disagree about them.
    """
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        try:
            socket.inet_aton(host)
        except OSError:
            return False
        raise RowFault("bad_url", f"{host[:80]!r} is an IP address in a nonstandard notation") from None
    return True


def _punycode(host: str) -> str:
    import idna

    try:
        return idna.encode(host, uts46=True).decode("ascii").lower()
    except idna.IDNAError as error:
        raise RowFault("bad_url", f"{host[:80]!r} is not a host name: {error}") from error


def unescaped(url: str) -> str:
    """Returns the URL with `&amp;` and other HTML entities decoded once, as a browser does with the `src` of an image.

    An entity without its `;` is kept: it is the name of a parameter (`?a=1&copy=2`).
    """
    return ENTITY.sub(lambda found: html.unescape(found[0]), url)


def redirected(base: str, location: str) -> str:
    """Returns the URL a redirect leads to, as `sendable`. Raises RowFault (bad_url).

    base: the URL that was requested. location: as in the header; bytes that are not UTF-8 (lone surrogates, from
    `surrogateescape`) are percent-encoded.
    """
    if len(location) > MAX_URL_CHARS:
        raise RowFault(
            "bad_url", f"the URL of the redirect has {len(location)} characters, the limit is {MAX_URL_CHARS}"
        )
    location = RAW_BYTE.sub(lambda byte: f"%{ord(byte[0]) - 0xDC00:02X}", location.strip())
    try:
        split_url(location)
        return sendable(urljoin(base, location))
    except ValueError as error:
        if isinstance(error, RowFault):
            raise
        raise RowFault("bad_url", f"the URL of the redirect is malformed: {error}") from error


def without_secrets(url: str) -> str:
    """Returns the URL without user name, fragment, and query parameters that look like signatures or tokens."""
    url = url.partition("#")[0]
    if "@" in url:
        url = re.sub(r"(?<=//)[^/?#]*@", "", url)
    if "?" not in url:
        return url
    base, _, query = url.partition("?")
    kept = [pair for pair in query.split("&") if pair and not SECRET.fullmatch(pair.partition("=")[0])]
    return f"{base}?{'&'.join(kept)}" if kept else base
