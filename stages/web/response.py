"""Receives a response: its result is a page in memory or in a file, a redirect location, or a RowFault."""

from __future__ import annotations

import http.client
import os
import re
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import IO

from vlpipe.pipeline.errors import RowFault
from vlpipe.stages.web.bodies import Body
from vlpipe.stages.web.headers import Headers, Unpacker, coding_of
from vlpipe.stages.web.limits import Limits
from vlpipe.stages.web.opt_out_headers import opted_out, opted_out_in_file, opted_out_inside
from vlpipe.stages.web.politeness import Turn
from vlpipe.stages.web.url import without_secrets

CONTENT = frozenset({200, 203})  # 203: changed by a proxy
REDIRECTS = frozenset({301, 302, 303, 307, 308})
SLOW_DOWN = frozenset({429, 503})  # these apply to the whole host, not only to this URL
A_YEAR_S = 365 * 86400.0
WHOLE_RANGE = re.compile(r"bytes[ =]0-([0-9]{1,18})/([0-9]{1,18})", re.IGNORECASE)
PACKED_BYTES = 1 << 16  # what packing may add to a body, besides 1/64 of it


@dataclass(frozen=True, slots=True)
class Page:
    """The content of a URL."""

    status: int
    url: str  # after redirects, without secrets
    content: Body | None = None  # close it after use, so that others have room
    file: str = ""  # path of the file with the body, if there is no `content`

    @property
    def body(self) -> bytes:
        """Returns the bytes of `content`; empty if it is in `file`."""
        return self.content.read() if self.content else b""


class HttpFault(RowFault):
    """A response with an HTTP status other than those of content (200, 203, a complete 206) or of a redirect."""

    def __init__(self, status: int) -> None:
        super().__init__(f"http_{status}", http.client.responses.get(status, ""))
        self.status = status


class Response:
    """Receives the response to one request (a `client.Reply`); `got` returns its result.

    turn: is told whether the host asked for a pause or opted out. body: what the bytes are added to. rules: the URL is a
    robots.txt or tdmrep.json, in which no opt-out is looked for, and which is cut at `max_bytes` instead of rejected.
    folder: if set, the body is written to a file there instead.
    """

    def __init__(
        self,
        url: str,
        turn: Turn,
        limits: Limits,
        max_bytes: int,
        body: Body,
        *,
        rules: bool = False,
        folder: str = "",
    ) -> None:
        self._url, self._turn, self._limits, self._max_bytes = url, turn, limits, max_bytes
        self._body, self._rules, self._folder = body, rules, folder
        self._found: str | RowFault | None = None  # a redirect location or a failure, instead of a body
        self._status = self._num_bytes = self._num_sent = 0  # bytes of the body, unpacked and as sent
        self._num_whole: int | None = None  # bytes of the whole content, if the status is 206
        self._file: IO[bytes] | None = None
        self._unpacker: Unpacker | None = None

    def head(self, status: int, headers: Headers) -> bool:
        """Returns whether the body is wanted. Raises RowFault: opt_out, too_large, bad_response."""
        self._status = status
        if status in SLOW_DOWN:
            self._turn.struck, self._turn.wanted_s = True, retry_after_s(headers.get("Retry-After"))
        redirects = status in REDIRECTS and "Location" in headers
        self._num_whole = whole_range(headers) if status == 206 else None
        if not (redirects or status in CONTENT or self._num_whole is not None):
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

    def piece(self, data: bytes) -> bool:
        """Adds bytes of the body; returns True if later bytes are not wanted: it is complete or, for `rules`, cut.

        Raises RowFault: too_large (more than `max_bytes`, even if unannounced), bad_response.
        """
        self._num_sent += len(data)
        if self._unpacker:
            if self._num_sent > self._max_bytes + self._max_bytes // 64 + PACKED_BYTES:
                raise RowFault("too_large", f"the compressed response has more than {self._max_bytes} bytes")
            data = self._unpacker.add(data, self._max_bytes + 1 - self._num_bytes)
        return self._add(data) or bool(self._unpacker and self._unpacker.ended)

    def _add(self, data: bytes) -> bool:
        self._num_bytes += len(data)
        too_large = self._num_bytes > self._max_bytes
        if too_large and self._rules:
            data = data[: self._max_bytes - self._num_bytes]
        elif too_large:
            raise RowFault("too_large", f"the response has more than {self._max_bytes} bytes")
        if self._file:
            self._file.write(data)
        else:
            self._body.add(data)
        return too_large

    def got(self) -> Page | str:
        """Returns the page, or the location it redirects to. Called once, after the last byte.

        Raises RowFault: http_<status>, opt_out, disconnected, bad_response, too_large.
        """
        if isinstance(self._found, RowFault):
            raise self._found
        if self._found is not None:
            return self._found
        if self._num_whole not in (None, self._num_sent):
            raise HttpFault(self._status)
        if self._unpacker and self._num_bytes <= self._max_bytes:
            self._add(self._unpacker.end(self._max_bytes + 1 - self._num_bytes))
        shown = without_secrets(self._url)
        if self._file:
            self._file.close()
            self._need_consent(opted_out_in_file(self._file.name, self._limits.opt_out))
            return Page(self._status, shown, file=self._file.name)
        self._body.end()
        if not self._rules:
            self._need_consent(opted_out_inside(self._body.read(), self._limits.opt_out))
        return Page(self._status, shown, self._body)

    def drop(self) -> None:
        """Forgets the incomplete body, and deletes its file."""
        self._body.close()
        if self._file:
            self._file.close()
            os.unlink(self._file.name)

    def _need_consent(self, evidence: str | None) -> None:
        """Raises RowFault (opt_out) if there is evidence, and has `turn` record it, so that later runs skip the URL."""
        if evidence is not None:
            self._turn.opted_out = evidence
            raise RowFault("opt_out", evidence)

    def _need_readable(self, headers: Headers) -> None:
        length = headers.get("Content-Length")
        too_large = (
            length.isascii() and length.isdecimal() and (len(length) > 18 or int(length) > self._max_bytes)
        )
        if too_large and not self._rules:
            raise RowFault(
                "too_large", f"the response has {length[:30]} bytes, the limit is {self._max_bytes}"
            )
        coding = coding_of(headers.getall("Content-Encoding", []))
        self._unpacker = Unpacker(coding) if coding else None


def whole_range(headers: Headers) -> int | None:
    """Returns the size of the content in bytes if a 206 has all of it (10 for `Content-Range: bytes 0-9/10`), else None."""
    found = WHOLE_RANGE.fullmatch(headers.get("Content-Range"))
    return int(found[2]) if found and int(found[1]) + 1 == int(found[2]) else None


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
