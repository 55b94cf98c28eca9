"""Reads single values of a column of bytes by pages: a row group of images has up to 64 MB, a page about 1 MB.

PyArrow reads whole row groups. Here the page headers of one column chunk are walked (each names the size of its page), and
only the page that holds a row is read, checked, decompressed and cut into values. Format: https://parquet.apache.org/docs/,
Thrift's compact protocol for headers; data pages of version 1, PLAIN encoded. Columns that are stored otherwise have no
pages here (`pages_of` returns None) and are read by row group.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlpipe.pipeline.parquet.image_files import read_schema

HEADER_BYTES = 512  # a page header without statistics has about 40
MAX_PAGES = 100_000
DATA_PAGE, PLAIN = 0, 0
BYTES = (pa.binary(), pa.string(), pa.large_binary(), pa.large_string())
CODECS = {"ZSTD": "zstd", "SNAPPY": "snappy", "GZIP": "gzip", "LZ4": "lz4_raw", "UNCOMPRESSED": ""}


@dataclass(frozen=True, slots=True)
class Page:
    """A data page. first: its first row in the row group; at: offset of its data in the file; crc: None if it has none."""

    first: int
    num_rows: int
    at: int
    num_bytes: int
    raw_bytes: int
    crc: int | None


@dataclass(frozen=True, slots=True)
class Pages:
    """The pages of a column chunk, in order. codec: pyarrow's name, empty for none. max_level: the definition level of a
    value that is not null: 1 for a nullable column, 2 for a nullable field of a nullable struct, 0 if none can be null."""

    pages: Sequence[Page]
    codec: str
    max_level: int

    def holding(self, row: int) -> int:
        """Returns the number of the page that holds a row of the row group."""
        return next(k for k, page in enumerate(self.pages) if row < page.first + page.num_rows)


def pages_of(file: pq.ParquetFile, source: pa.NativeFile, group: int, column: str) -> Pages | None:
    """Returns the pages of a column in a row group; None if the column is not one of bytes, texts or image files outside of
    lists and structs, or is not stored as PLAIN data pages of version 1. Raises ValueError if a header cannot be read."""
    paths = [file.schema.column(k).path for k in range(len(file.schema))]
    seen = read_schema(file.schema_arrow)
    if column not in seen.names or seen.field(column).type not in BYTES:
        return None
    k = next(paths.index(path) for path in (column, f"{column}.bytes") if path in paths)
    kind, about = file.schema.column(k), file.metadata.row_group(group).column(k)
    if kind.physical_type != "BYTE_ARRAY" or about.compression not in CODECS:
        return None
    if about.has_dictionary_page:
        return None
    found, first, at = list[Page](), 0, about.data_page_offset
    while first < about.num_values and len(found) < MAX_PAGES:
        header, size = _header(source.read_at(HEADER_BYTES, at))
        data = header.get(5)
        if header.get(1) != DATA_PAGE or not isinstance(data, dict) or data.get(2) != PLAIN:
            return None
        crc = header.get(4)
        found.append(
            Page(first, data[1], at + size, header[3], header[2], None if crc is None else crc & 0xFFFFFFFF)
        )
        first, at = first + data[1], at + size + header[3]
    return Pages(found, CODECS[about.compression], kind.max_definition_level)


def values_of(source: pa.NativeFile, pages: Pages, number: int) -> list[bytes | None]:
    """Returns the values of a page. Raises ValueError if its checksum or its content is wrong."""
    page = pages.pages[number]
    data = bytes(source.read_at(page.num_bytes, page.at))
    if len(data) != page.num_bytes or (page.crc is not None and zlib.crc32(data) != page.crc):
        raise ValueError(f"the checksum of page {number} is wrong")
    try:
        if pages.codec:
            data = pa.decompress(data, page.raw_bytes, codec=pages.codec, asbytes=True)
        start, present = (
            _levels(data, page.num_rows, pages.max_level) if pages.max_level else (0, [True] * page.num_rows)
        )
        return _cut(data, start, present)
    except (struct.error, IndexError, pa.ArrowException) as error:
        raise ValueError(f"page {number} is damaged ({error})") from error


def _levels(data: bytes, num_rows: int, max_level: int) -> tuple[int, list[bool]]:
    """Returns the offset behind the definition levels, and whether each value is there. Runs of levels, or levels in groups
    of 8, each of 1 bit, or of 2 for a maximum of 2."""
    (size,) = struct.unpack_from("<I", data)
    width = max_level.bit_length()
    present, at = list[bool](), 4
    while at < 4 + size and len(present) < num_rows:
        head, at = _varint(data, at)
        if head & 1:
            for _ in range(head >> 1):
                group = int.from_bytes(data[at : at + width], "little")
                present += [group >> k * width & (1 << width) - 1 == max_level for k in range(8)]
                at += width
        else:
            present += [data[at] == max_level] * min(head >> 1, num_rows)
            at += 1
    if len(present) < num_rows:
        raise IndexError("levels are missing")
    return 4 + size, present[:num_rows]


def _cut(data: bytes, at: int, present: Sequence[bool]) -> list[bytes | None]:
    values: list[bytes | None] = []
    for is_there in present:
        if not is_there:
            values.append(None)
            continue
        (size,) = struct.unpack_from("<I", data, at)
        if at + 4 + size > len(data):
            raise IndexError("a value ends behind the page")
        values.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return values


def _header(data: bytes) -> tuple[dict[int, Any], int]:
    """Returns the fields of a page header by their numbers, and its bytes. Raises ValueError if it is none."""
    try:
        return _struct(data, 0)
    except (IndexError, struct.error) as error:
        raise ValueError("a page header cannot be read") from error


def _struct(data: bytes, at: int) -> tuple[dict[int, Any], int]:
    found, number = dict[int, Any](), 0
    while True:
        byte = data[at]
        at += 1
        if byte == 0:
            return found, at
        kind = byte & 15
        if byte >> 4:
            number += byte >> 4
        else:
            number, at = _zigzag(data, at)
        found[number], at = _value(data, at, kind)


def _value(data: bytes, at: int, kind: int) -> tuple[Any, int]:
    """Returns a value of Thrift's compact protocol, and the offset behind it. Raises IndexError for kinds no header has."""
    if kind in (1, 2):
        return kind == 1, at
    if kind == 3:
        return data[at], at + 1
    if kind in (4, 5, 6):
        return _zigzag(data, at)
    if kind == 7:
        return struct.unpack_from("<d", data, at)[0], at + 8
    if kind == 8:
        size, at = _varint(data, at)
        return data[at : at + size], at + size
    if kind == 12:
        return _struct(data, at)
    raise IndexError(f"kind {kind}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise IndexError("a number is too long")


def _zigzag(data: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return value >> 1 ^ -(value & 1), at
