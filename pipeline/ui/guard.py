"""Decides whether a request is answered. The page shows private data, and any web site can make a browser ask 127.0.0.1.

A request needs the random token in its path, a Host header that names this machine (a foreign name that resolves to
127.0.0.1 is DNS rebinding), and, if the browser says where it comes from, the page itself. Only GET and HEAD are known.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

NAMES = ("127.0.0.1", "localhost", "[::1]")
METHODS = ("GET", "HEAD")
MAX_TARGET = 8_000  # characters of a request's path and query

# Scripts, styles, images and requests only from the server itself: text that got into the page could neither run nor send.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; media-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """status: HTTP status; text: the reason, one sentence."""

    status: int
    text: str


def new_token() -> str:
    """Returns a token of 192 random bits."""
    return secrets.token_urlsafe(24)


def refusal(method: str, target: str, headers: Mapping[str, str], port: int, token: str) -> Refusal | None:
    """Returns why a request is refused; None if it is answered. target: path and query; headers: names in lower case.

    The token is compared last, so an answer to a foreign page never says whether a token is right.
    """
    if method not in METHODS:
        return Refusal(405, "only GET and HEAD are answered: the page changes nothing")
    if len(target) > MAX_TARGET:
        return Refusal(414, f"the URL has more than {MAX_TARGET:,} characters")
    hosts = {f"{name}:{port}" for name in NAMES} | (set(NAMES) if port == 80 else set())
    if headers.get("host", "").lower() not in hosts:
        return Refusal(421, "the Host header names another machine than this one")
    origin = headers.get("origin")
    if origin is not None and origin.lower() not in {f"http://{host}" for host in hosts}:
        return Refusal(403, "the request comes from another page")
    if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        return Refusal(403, "the request comes from another page")
    given = target.partition("?")[0].removeprefix("/").partition("/")[0]
    if not hmac.compare_digest(given.encode(), token.encode()):
        return Refusal(403, "the token is missing or wrong; use the URL that `vlpipe ui` printed")
    return None
