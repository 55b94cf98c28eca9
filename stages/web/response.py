"""Receives a response: its result is a page in memory or in a file, a redirect location, or a RowFault."""

from __future__ import annotations

import http.client
import os
import tempfile
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import IO

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.web.headers import Headers
from vlpipe.stages.web.limits import Limits
from vlpipe.stages.web.opt_out_headers import opted_out, opted_out_inside
from vlpipe.stages.web.politeness import Turn
from vlpipe.stages.web.url import without_secrets

REDIRECTS = frozenset({301, 302, 303, 307, 308})
SLOW_DOWN = frozenset({429, 503})  # these apply to the whole host, not only to this URL
A_YEAR_S = 365 * 86400.0


@dataclass(frozen=True, slots=True)
class Page:
    """The content of a URL."""

    status: int
    url: str  # after redirects, without secrets
    body: bytes
    file: str = ""  # path of the file with the body, if `body` is not used


class HttpFault(RowFault):
    """A response with an HTTP status other than 200 or a redirect."""

    def __init__(self, status: int) -> None:
        super().__init__(f"http_{status}", http.client.responses.get(status, ""))
        self.status = status


class Response:
    """Receives the response to one request (a `client.Reply`); `got` returns its result.

    rules: the URL is a robots.txt or tdmrep.json, where opt-outs are not looked for. folder: if set, the body is written to
    a file there.
    """

    def __init__(
        self, url: str, turn: Turn, limits: Limits, max_bytes: int, *, rules: bool, folder: str
    ) -> None:
        self._url, self._turn, self._limits, self._max_bytes = url, turn, limits, max_bytes
        self._rules, self._folder = rules, folder
        self._found: str | RowFault | None = None  # a redirect location or a failure, instead of a body
        self._status = self._num_bytes = 0
        self._pieces: list[bytes] = []
        self._file: IO[bytes] | None = None
        self._unzip: zlib._Decompress | None = None

    def head(self, status: int, headers: Headers) -> bool:
        """Returns whether the body is wanted. Raises RowFault: opt_out, too_large, bad_response."""
        self._status = status
        if status in SLOW_DOWN:
            self._turn.struck, self._turn.wanted_s = True, retry_after_s(headers.get("Retry-After"))
        redirects = status in REDIRECTS and "Location" in headers
        if not (redirects or status == 200):
            self._found = HttpFault(status)
            return False
        if not self._rules:
            self._need_consent(opted_out(headers, self._limits.product, self._limits.opt_out))
        if redirects:
            self._found = headers.get("Location")
            return False
        self._need_readable(headers)
        if self._folder:
            self._file = tempfile.NamedTemporaryFile(dir=self._folder, delete=False)  # noqa: SIM115
        return True

    def piece(self, data: bytes) -> None:
        """Adds bytes of the body. Raises RowFault: too_large (more than `max_bytes`, even if unannounced), bad_response."""
        if self._unzip:
            try:
                data = self._unzip.decompress(data, self._max_bytes + 1 - self._num_bytes)
            except zlib.error as error:
                raise RowFault("bad_response", f"the compressed body is broken: {error}") from error
        self._num_bytes += len(data)
        if self._num_bytes > self._max_bytes:
            raise RowFault("too_large", f"more than {self._max_bytes} bytes")
        if self._file:
            self._file.write(data)
        else:
            self._pieces.append(data)

    def got(self) -> Page | str:
        """Returns the page, or the location it redirects to. Raises RowFault if there is neither, or for an opt-out."""
        if isinstance(self._found, RowFault):
            raise self._found
        if self._found is not None:
            return self._found
        if self._unzip and not self._unzip.eof:
            raise RowFault("disconnected", "the compressed body ends early")
        shown = without_secrets(self._url)
        if self._file:
            self._file.close()
            return Page(self._status, shown, b"", self._file.name)
        body = b"".join(self._pieces)
        if not self._rules:
            self._need_consent(opted_out_inside(body, self._limits.opt_out))
        return Page(self._status, shown, body)

    def drop(self) -> None:
        """Deletes the incomplete file, if any."""
        if self._file:
            self._file.close()
            os.unlink(self._file.name)

    def _need_consent(self, evidence: str | None) -> None:
        """Raises RowFault (opt_out) if there is evidence, and has the gate record it, so that later runs skip the URL."""
        if evidence is not None:
            self._turn.opted_out = evidence
            raise RowFault("opt_out", evidence)

    def _need_readable(self, headers: Headers) -> None:
        length = headers.get("Content-Length")
        if length.isascii() and length.isdecimal() and (len(length) > 18 or int(length) > self._max_bytes):
            raise RowFault("too_large", f"{length[:30]} bytes, the limit is {self._max_bytes}")
        encoding = headers.get("Content-Encoding", "identity").lower()
        if encoding not in ("identity", "", "gzip", "x-gzip", "deflate"):
            raise RowFault("bad_response", f"content encoding {encoding[:20]!r}, but none was requested")
        if encoding not in ("identity", ""):
            self._unzip = zlib.decompressobj(wbits=47)


def retry_after_s(value: str) -> float:
    """Returns the seconds to wait by a Retry-After header (a number or an HTTP date), at most a year; 0 if invalid."""
    value = value.strip()
    if value.isascii() and value.isdecimal():
        return min(float(value[:12]), A_YEAR_S)
    try:
        at = parsedate_to_datetime(value)
        at = at if at.tzinfo else at.replace(tzinfo=UTC)
        return min(max((at - datetime.now(UTC)).total_seconds(), 0.0), A_YEAR_S)
    except (ValueError, OverflowError, TypeError):  # an impossible year or time zone
        return 0.0
