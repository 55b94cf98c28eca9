r"""Reads text files line by line as people's programs write them: any encoding and mark, LF, CR LF or CR, any length.

A line that cannot be decoded, or is longer than MAX_LINE_BYTES, is returned as an error; the lines around it are not lost.
A lone CR ends a line only in a file whose first SAMPLE_BYTES have no LF; elsewhere it belongs to the text.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from vlpipe.pipeline.errors import VlpipeError

MAX_LINE_BYTES = 1 << 24  # in UTF-16 and UTF-32: characters
SAMPLE_BYTES = 1 << 20
SHOWN_CHARS = 1_000  # max characters of an unreadable line that are kept
MARKED = "\udcff"  # stands for what cannot be decoded; no decoder returns it otherwise
MARKS = (  # UTF-32 first: its mark starts with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (codecs.BOM_UTF8, "utf-8"),
)
# Where the NUL bytes of an ASCII character are, for files without a mark.
NULS = {"utf-16": ((b"x0", "le"), (b"0x", "be")), "utf-32": ((b"x000", "le"), (b"000x", "be"))}


class BadLine(VlpipeError):
    """An unreadable line. `line`: its content, with undecodable bytes escaped, cut to SHOWN_CHARS.

    odd_quotes: whether it has an odd number of `"`, so that a field of a csv begins or ends in it.
    """

    def __init__(self, message: str, line: str, num_quotes: int | None = None) -> None:
        self.line = line[:SHOWN_CHARS]
        self.odd_quotes = bool((line.count('"') if num_quotes is None else num_quotes) % 2)
        super().__init__(message)


class Encoding(NamedTuple):
    """The codec of a file, and the number of bytes of its byte-order mark."""

    codec: str
    skip: int


def text_lines(path: Path | str, encoding: str = "utf-8") -> Iterator[tuple[str, str | BadLine]]:
    """Yields (position, line with its end, or BadLine) of all lines; position: "FILE line 7".

    Raises VlpipeError if `encoding` does not exist or does not fit the file.
    """
    with open(path, "rb") as handle:
        found = encoding_of(handle, str(path), encoding)
        read = _reader(handle, found)
        number = 0
        while True:
            number += 1
            where = f"{path} line {number}"
            try:
                line = read(where)
            except BadLine as bad:
                yield where, bad
                continue
            if not line:
                return
            yield where, line


def lines_of(text: str) -> list[str]:
    """Returns the lines of a text without their ends, LF, CR LF or CR. `str.splitlines` also cuts at U+2028, U+0085, form
    feeds and others, which belong to a line."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines if lines[-1] else lines[:-1]


def text_file(path: Path | str, encoding: str = "utf-8") -> IO[str]:
    """Opens a text file without its byte-order mark. Raises VlpipeError; reading raises UnicodeDecodeError."""
    handle = open(path, "rb")  # noqa: SIM115  # the caller closes it
    try:
        found = encoding_of(handle, str(path), encoding)
        return io.TextIOWrapper(handle, encoding=found.codec, newline="")
    except BaseException:
        handle.close()
        raise


def encoding_of(handle: IO[bytes], path: str, encoding: str) -> Encoding:
    """Returns how to decode a file; its handle is then behind the mark. Raises VlpipeError: see `text_lines`.

    A mark decides between UTF-8, UTF-16 and UTF-32 where `encoding` leaves that open (utf-8, utf-16, utf-32). Without one,
    the NUL bytes of the first character decide the byte order.
    """
    name = _codec_name(encoding)
    family = next((one for one in ("utf-8", *NULS) if name.startswith(one)), "")
    first = handle.read(4)
    for mark, codec in MARKS:
        # `ff fe` may be text in other encodings, and `ff fe 00 00` is also the mark of UTF-16 and a NUL
        if not first.startswith(mark) or not (family or codec == "utf-8"):
            continue
        if family == "utf-16" and codec.startswith("utf-32"):
            continue
        if name not in ("utf-8", "utf-8-sig", codec) and not (name == family and codec.startswith(family)):
            raise VlpipeError(
                f"{path} begins with the byte-order mark of {codec}, but `encoding` is {encoding}"
            ).with_settings(("encoding", codec))
        handle.seek(len(mark))
        return Encoding(codec, len(mark))
    handle.seek(0)
    order = _order_of(first)
    if name == "utf-8" and order:
        raise VlpipeError(
            f"{path} is not UTF-8: it looks like {order} without a byte-order mark; save it as UTF-8, or set "
            f"encoding: {order} if the stage has that parameter"
        ).with_settings(("encoding", order))
    if name in NULS:
        return Encoding(order if order.startswith(name) else f"{name}-le", 0)
    return Encoding("utf-8" if name == "utf-8-sig" else name, 0)


def _codec_name(encoding: str) -> str:
    try:
        name = codecs.lookup(encoding).name
        "\n".encode(encoding)  # a LookupError for codecs that are not for text
        return name
    except (LookupError, UnicodeError, ValueError) as error:
        raise VlpipeError(
            f"there is no encoding {encoding!r}; use one such as utf-8, latin-1, shift_jis"
        ) from error


def _order_of(first: bytes) -> str:
    """Returns the codec whose ASCII characters have NUL bytes where the first character has them; else empty."""
    for name in ("utf-32", "utf-16"):
        size = 4 if name == "utf-32" else 2
        shape = bytes(ord("x") if byte else ord("0") for byte in first[:size])
        for wanted, order in NULS[name]:
            if shape == wanted:
                return f"{name}-{order}"
    return ""


def _reader(handle: IO[bytes], encoding: Encoding) -> Callable[[str], str]:
    """Returns a function (position) -> the next line with its end; empty at the end of the file. It raises BadLine."""
    sample = handle.read(SAMPLE_BYTES)
    handle.seek(encoding.skip)
    codec = encoding.codec
    if "\n".encode(codec) != b"\n":  # UTF-16, UTF-32: the decoder has to find the lines
        start = sample.decode(codec, "replace")
        ends = "" if _has_only_cr(start) else "\n"
        text = io.TextIOWrapper(handle, encoding=codec, errors="vlpipe-mark", newline=ends)
        return lambda where: _marked(_bounded(text.readline, where), where, codec)
    if _has_only_cr(sample.decode("latin-1")):
        one_to_one = io.TextIOWrapper(handle, encoding="latin-1", newline="")
        return lambda where: decoded(_bounded(one_to_one.readline, where).encode("latin-1"), where, codec)
    return lambda where: decoded(_bounded_bytes(handle.readline, where), where, codec)


def _has_only_cr(sample: str) -> bool:
    """Returns whether lines end in CR alone. The last character does not count: an LF may follow it."""
    return "\n" not in sample and "\r" in (sample if len(sample) < SAMPLE_BYTES // 4 else sample[:-1])


def _bounded(readline: Callable[[int], str], where: str) -> str:
    line = readline(MAX_LINE_BYTES + 1)
    if len(line) > MAX_LINE_BYTES and not line.endswith(("\n", "\r")):
        num_quotes, rest = line.count('"'), "x"
        while rest and not rest.endswith(("\n", "\r")):
            rest = readline(MAX_LINE_BYTES)
            num_quotes += rest.count('"')
        raise BadLine(_too_long(where), line[:SHOWN_CHARS].replace(MARKED, "\ufffd"), num_quotes)
    return line


def _bounded_bytes(readline: Callable[[int], bytes], where: str) -> bytes:
    line = readline(MAX_LINE_BYTES + 1)
    if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
        num_quotes, rest = line.count(b'"'), b"x"
        while rest and not rest.endswith(b"\n"):
            rest = readline(MAX_LINE_BYTES)
            num_quotes += rest.count(b'"')
        raise BadLine(_too_long(where), line[:SHOWN_CHARS].decode("ascii", "backslashreplace"), num_quotes)
    return line


def _too_long(where: str) -> str:
    return f"{where} is longer than {MAX_LINE_BYTES:,} bytes"


def decoded(data: bytes, where: str, codec: str) -> str:
    """Returns the bytes as text. Raises BadLine with the position of the first byte that cannot be decoded."""
    try:
        return data.decode(codec)
    except UnicodeDecodeError:
        raise _undecodable(data.rstrip(b"\r\n"), where, codec) from None


def _undecodable(data: bytes, where: str, codec: str) -> BadLine:
    try:
        data.decode(codec)
        message = f"{where} is not {codec.upper()}: its end cannot be decoded"
    except UnicodeDecodeError as error:
        message = f"{where} is not {codec.upper()}: {error.reason} at byte {error.start + 1}"
    return BadLine(message, data[:SHOWN_CHARS].decode("ascii", "backslashreplace"), data.count(b'"'))


def _marked(line: str, where: str, codec: str) -> str:
    if MARKED in line:
        message = (
            f"{where} is not {codec.upper()}: it cannot be decoded at character {line.index(MARKED) + 1}"
        )
        shown = line[:SHOWN_CHARS].rstrip("\r\n").replace(MARKED, "\ufffd")
        raise BadLine(message, shown, line.count('"'))
    return line


def _mark(error: UnicodeError) -> tuple[str, int]:
    if isinstance(error, UnicodeDecodeError):
        return MARKED, error.end
    raise error


codecs.register_error("vlpipe-mark", _mark)
