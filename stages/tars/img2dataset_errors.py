"""Maps img2dataset's error messages (of urllib, sockets and OpenCV) to the codes of our own fetcher."""

from __future__ import annotations

import http.client
import re

from vlpipe.pipeline.errors import RowFault

UNKNOWN = "img2dataset_error"
# The first match wins, so the order matters: if urllib refuses a redirect, its message starts with the HTTP status of the
# redirect; the text after a status is the server's ("504 Gateway Timeout"); and an SSL handshake may time out.
TYPED = (
    (r"^HTTP Error 30\d: .*infinite loop", "too_many_redirects"),
    (r"^HTTP Error 30\d: .*Redirection to url .* is not allowed", "bad_url"),
    (r"^HTTP Error (\d{3})\b", "http_"),
    (r"timed out|timeout", "timeout"),
    (r"X-Robots-Tag", "opted_out"),
    (r"hash mismatch", "hash_mismatch"),
    (r"Name or service not known|name resolution|No address associated|getaddrinfo failed", "dns"),
    (r"\bSSL\b|CERTIFICATE|certificate|tlsv1|_ssl\.c", "tls"),
    (r"Connection reset|Remote end closed|IncompleteRead|Broken pipe|EOF occurred", "disconnected"),
    (r"Connection refused|No route to host|unreachable|Cannot assign requested address", "connect"),
    (r"unknown url type|no host given|control characters|codec can't encode|nonnumeric port", "bad_url"),
    (r"!buf\.empty\(\)|[Ee]mpty buffer", "empty"),
    (r"Image decoding error|could not decode", "not_an_image"),
    (r"image too small", "too_small"),
    (r"image area too large|CV_IO_MAX_IMAGE", "too_many_pixels"),
    (r"aspect ratio too large", "aspect_ratio"),
)


def typed(message: str | None) -> RowFault:
    """Returns a RowFault for an `error_message`: http_<status>, a code of TYPED, or img2dataset_error.

    The message is the detail, except for http_<status>.
    """
    text = " ".join((message or "no reason given").split())[:300]
    for pattern, why in TYPED:
        found = re.search(pattern, text)
        if found and why == "http_":
            return RowFault(f"http_{found[1]}", http.client.responses.get(int(found[1]), ""))
        if found:
            return RowFault(why, text)
    return RowFault(UNKNOWN, text)
