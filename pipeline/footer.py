"""Is the footer of a shard what the one writer of shards wrote? Page checksums do not cover it.

A flipped bit there may turn a column into another type, or hide rows, and readers do not notice, or end the process. The
writer is always set the same, so nearly all of a footer follows from its columns and from where the pages lie. It is
looked at as it lies there (Thrift's compact protocol), before a library does.
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift
"""

from __future__ import annotations

import base64
import io
import struct
from functools import lru_cache
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

MAGIC = b"PAR1"
SETTINGS = {
    # Statistics and dictionaries are off: both depend on writer state, and zstd takes what dictionaries would.
    "compression": "zstd",
    "compression_level": 1,
    "use_dictionary": False,
    "write_statistics": False,
    "write_page_checksum": True,
}
ZSTD = 6
MAX_DEPTH = 12
# Numbers of the fields of FileMetaData, RowGroup, ColumnChunk, ColumnMetaData and KeyValue.
SCHEMA, NUM_ROWS, GROUPS, KEYS_VALUES = 2, 3, 4, 5
COLUMNS, GROUP_ROWS = 1, 3
META = 3
PATH, CODEC, NUM_VALUES, COMPRESSED, OFFSET = 3, 4, 5, 7, 9
# The others: type, encodings, size before compression, counts of encodings, sizes by level.
IN_COLUMN = {1, 2, PATH, CODEC, NUM_VALUES, 6, COMPRESSED, OFFSET, 13, 16}
KEY, VALUE = 1, 2


def footer_problem(file: IO[bytes], num_rows: int = -1) -> str:
    """What cannot be true of a shard of that size (and so many rows); "" when nothing is wrong."""
    num_bytes = file.seek(0, io.SEEK_END)
    file.seek(max(0, num_bytes - 8))
    end = file.read(8)
    length = int.from_bytes(end[:4], "little")
    if end[4:] != MAGIC or length > num_bytes - 12:
        return "it does not end as Parquet does"
    file.seek(num_bytes - 8 - length)
    try:
        return _problem(Thrift(file.read(length)).whole(), num_bytes - 8 - length, num_rows)
    except (LookupError, ValueError, TypeError, struct.error, pa.ArrowException, OSError) as error:
        return f"its footer is damaged: {type(error).__name__}: {error}"


def _problem(footer: dict[int, Any], end: int, num_rows: int) -> str:
    stored = {one[KEY]: one[VALUE] for one in footer[KEYS_VALUES]}
    if footer[SCHEMA] != _columns(stored[b"ARROW:schema"]):
        return "its columns contradict each other"
    at, rows = len(MAGIC), 0
    for group in footer.get(GROUPS, ()):
        rows += group[GROUP_ROWS]
        for chunk in group[COLUMNS]:
            column = chunk[META]
            name, values = b".".join(column[PATH]).decode(), column[NUM_VALUES]
            if column[OFFSET] != at or column[CODEC] != ZSTD or not column.keys() <= IN_COLUMN:
                return f"column {name!r} does not lie where it should"
            if values < group[GROUP_ROWS] or (len(column[PATH]) == 1 and values != group[GROUP_ROWS]):
                return f"column {name!r} has {values} values for {group[GROUP_ROWS]} rows"
            at += column[COMPRESSED]
    if at != end or rows != footer[NUM_ROWS]:
        return f"its row groups end at byte {at} of {end}, and have {rows} of {footer[NUM_ROWS]} rows"
    return f"it has {rows} rows, and not {num_rows}" if num_rows not in (-1, rows) else ""


@lru_cache(maxsize=256)
def _columns(stored: bytes) -> list[Any]:
    """As they lie in the footer of a shard of this Arrow schema."""
    schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(stored, validate=True)))
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, schema, **SETTINGS):
        pass
    data = buffer.getvalue()
    length = int.from_bytes(data[-8:-4], "little")
    found: list[Any] = Thrift(data[-8 - length : -8]).whole()[SCHEMA]
    return found


class Thrift:
    """Values of the compact protocol: a struct is a dict by field number, text is bytes.

    https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
    """

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def whole(self) -> dict[int, Any]:
        """The struct that is all of the data. ValueError, IndexError: it is not."""
        found = self._struct(0)
        if self._at != len(self._data):
            raise ValueError(f"{len(self._data) - self._at} bytes after its end")
        return found

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _unsigned(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    def _number(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)

    def _take(self, num: int) -> bytes:
        if num > len(self._data) - self._at:
            raise ValueError(f"{num} bytes wanted, fewer are left")
        self._at += num
        return self._data[self._at - num : self._at]

    def _struct(self, depth: int) -> dict[int, Any]:
        found: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._number()
            if number in found:
                raise ValueError(f"field {number} is there twice")
            found[number] = self._value(head & 0x0F, depth + 1)
        return found

    def _value(self, kind: int, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise ValueError("it is nested too deep")
        if kind in (1, 2):  # of a boolean field: its value
            return kind == 1
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):
            return self._number()
        if kind == 7:
            return self._take(8)
        if kind == 8:
            return self._take(self._unsigned())
        if kind in (9, 10):
            return self._list(depth)
        if kind == 12:
            return self._struct(depth)
        raise ValueError(f"a value of kind {kind}")

    def _list(self, depth: int) -> list[Any]:
        head = self._byte()
        num = head >> 4 if head >> 4 < 15 else self._unsigned()
        if num > len(self._data) - self._at:
            raise ValueError(f"a list of {num}")
        inner = head & 0x0F
        if inner in (1, 2):
            return [self._byte() == 1 for _ in range(num)]
        return [self._value(inner, depth + 1) for _ in range(num)]
