"""Headers of a response, and unpacking of its body as Content-Encoding says.

`Accept-Encoding: identity` is sent, so few bodies are encoded. A word that is no registered coding (`none`, `utf-8`,
`binary`) says nothing about the bytes, and a body that does not begin as its coding demands is not encoded: browsers show
such images too. https://www.iana.org/assignments/http-parameters/http-parameters.xhtml#content-coding
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from vlpipe.pipeline.errors import RowFault

MAX_BYTES = 1 << 16  # of the headers of a response; browsers allow four times as much
UNPACKED = frozenset({"gzip", "x-gzip", "deflate"})
CODINGS = UNPACKED.union(
    ("aes128gcm", "br", "compress", "dcb", "dcz", "exi", "pack200-gzip", "x-compress", "zstd")
)
ANY_HEADER, NO_HEADER = 47, -15  # zlib's `wbits`: a gzip or zlib header; none, as some servers send deflate
FIRST_BYTES = 16  # of a body, which tell whether it is encoded as its header says
MAX_MEMBERS = 100  # of a gzip body (RFC 1952, 2.2)


class Headers:
    """Response headers: case-insensitive names, several values per name; added line by line as they arrive."""

    def __init__(self) -> None:
        self._values: dict[str, list[str]] = {}
        self._num_bytes = 0

    def add(self, line: bytes) -> None:
        """Adds a line `Name: value`. Raises RowFault (bad_response) if all lines together exceed MAX_BYTES."""
        self._num_bytes += len(line)
        if self._num_bytes > MAX_BYTES:
            raise RowFault("bad_response", f"the response has more than {MAX_BYTES} bytes of headers")
        name, colon, value = line.decode("utf-8", "surrogateescape").partition(":")
        if colon:
            self._values.setdefault(name.strip().lower(), []).append(value.strip())

    def getall(self, name: str, default: list[str]) -> list[str]:
        """Returns all values of a header, or `default` if it is missing."""
        return self._values.get(name.lower(), default)

    def get(self, name: str, default: str = "") -> str:
        """Returns the first value of a header, or `default` if it is missing."""
        return self._values.get(name.lower(), [default])[0]

    def __contains__(self, name: str) -> bool:
        return name.lower() in self._values


def coding_of(values: Sequence[str]) -> str:
    """Returns the coding of a body, one of UNPACKED, or "" if it has none. values: of all Content-Encoding headers.

    Raises RowFault (bad_response) for several codings, or one that is not unpacked.
    """
    words = [word.strip().lower() for value in values for word in value.split(",")]
    codings = [word for word in words if word in CODINGS]
    if len(codings) > 1 or not UNPACKED.issuperset(codings):
        named = ", ".join(codings)[:40]
        raise RowFault(
            "bad_response", f"the response has the content encoding {named!r}, but none was requested"
        )
    return codings[0] if codings else ""


class Unpacker:
    """Unpacks a body as it arrives, in linear time. ended: the body is complete; later bytes are not part of it."""

    def __init__(self, coding: str) -> None:
        self.ended = False
        self._kinds = (ANY_HEADER, NO_HEADER) if coding == "deflate" else (ANY_HEADER,)
        self._first: bytes | None = b""  # None after `_begin`
        self._stream: zlib._Decompress | None = None  # None: the body is not encoded
        self._num_members = 1

    def add(self, data: bytes, room: int) -> bytes:
        """Returns the next bytes of the unpacked body. Raises RowFault (bad_response) if it is broken.

        room: max bytes to return. If that many are returned, there may be more, which are lost: the body must be given up.
        """
        if self._first is not None:
            self._first += data
            return self._begin(room) if len(self._first) >= FIRST_BYTES else b""
        return data[:room] if self._stream is None else self._unpacked(data, room)

    def end(self, room: int) -> bytes:
        """Returns the last bytes of the body. Raises RowFault: disconnected (incomplete), bad_response (broken)."""
        last = b"" if self._first is None else self._begin(room)
        if self._stream and not (self.ended or self._stream.eof):
            raise RowFault("disconnected", "the compressed response body ends early")
        return last

    def _begin(self, room: int) -> bytes:
        """Finds out how the body is encoded, if at all, and returns its first bytes."""
        first, self._first = self._first or b"", None
        kind = next((kind for kind in self._kinds if first and _fits(first, kind)), None)
        self._stream = None if kind is None else zlib.decompressobj(kind)
        return self.add(first, room)

    def _unpacked(self, data: bytes, room: int) -> bytes:
        out: list[bytes] = []
        while data and room and not self.ended:
            assert self._stream
            if self._stream.eof:
                self._stream = self._next_member(data)
            else:
                try:
                    out.append(self._stream.decompress(data, room))
                except zlib.error as error:
                    raise RowFault(
                        "bad_response", f"the compressed response body is damaged: {error}"
                    ) from error
                room -= len(out[-1])
                data = self._stream.unused_data
        return b"".join(out)

    def _next_member(self, data: bytes) -> zlib._Decompress | None:
        """Returns a stream for the next member of a gzip body; sets `ended` if `data` does not begin one."""
        if data[:2] not in (b"\x1f", b"\x1f\x8b"):
            self.ended = True
            return self._stream
        self._num_members += 1
        if self._num_members > MAX_MEMBERS:
            raise RowFault(
                "bad_response", f"the compressed response body has more than {MAX_MEMBERS} gzip members"
            )
        return zlib.decompressobj(ANY_HEADER)


def _fits(first: bytes, kind: int) -> bool:
    """Returns whether a body that begins with `first` can be unpacked with `kind`, zlib's `wbits`."""
    try:
        zlib.decompressobj(kind).decompress(first, FIRST_BYTES)
    except zlib.error:
        return False
    return True
