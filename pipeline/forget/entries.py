"""Reads lists of (kind, value) entries: a txt with `KIND:VALUE` lines, or a csv or Parquet file with a column per kind."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlpipe.pipeline.engine.records.forgotten import ascii_host
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.storage.text_lines import MAX_LINE_BYTES, BadLine, text_lines

DOMAIN = re.compile(r"[^\s/:@.]+(\.[^\s/:@.]+)*")
LONE_CR = "the line contains a carriage return; wanted lines that end in LF or CR LF"
BATCH_ROWS = 65_536
Entry = tuple[str, str, str]  # location ("FILE line 7"), kind, value


def read_entries(path: str | Path, kinds: Sequence[str]) -> Iterator[Entry]:
    """Yields every entry of a list. In a txt, lines that start with # are comments.

    Raises VlpipeError with file and line for a list that cannot be read.
    """
    file = Path(path)
    if not file.is_file():
        raise VlpipeError(f"there is no file {path}")
    if file.suffix.lower() not in READERS:
        raise VlpipeError(f"{path}: wanted a file whose name ends in {', '.join(READERS)}")
    yield from READERS[file.suffix.lower()](file, kinds)


def need_url(value: str, where: str) -> str:
    """Returns the URL. Raises VlpipeError unless it is http(s). where: location for the error text, here and below."""
    if not re.match(r"https?://[^/]", value, re.IGNORECASE):
        raise VlpipeError(f"{where}: wanted a url that begins with http:// or https://, got {value!r}")
    return value


def need_domain(value: str, where: str) -> str:
    """Returns a domain in lower case and ASCII, as hosts are compared. Raises VlpipeError if it is not a domain."""
    value = ascii_host(value.lower().strip("."))
    if not DOMAIN.fullmatch(value):
        raise VlpipeError(f"{where}: wanted a domain like example.org, got {value!r}")
    return value


def need_hex(value: str, digits: int, where: str) -> str:
    """Returns a hexadecimal value in lower case. Raises VlpipeError unless it has exactly `digits` digits."""
    value = value.lower()
    if not re.fullmatch(f"[0-9a-f]{{{digits}}}", value):
        raise VlpipeError(f"{where}: wanted {digits} hexadecimal digits, got {value!r}")
    return value


def _read_txt(file: Path, kinds: Sequence[str]) -> Iterator[Entry]:
    for where, line in _lines(file):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if "\r" in line:
            raise VlpipeError(f"{where}: {LONE_CR}")
        if "url" in kinds and line.lower().startswith(("http://", "https://")):
            line = f"url:{line}"
        kind, colon, value = line.partition(":")
        if kind not in kinds or not colon or not value.strip():
            wanted = " or ".join(f"{k}:" for k in kinds)
            raise VlpipeError(f"{where}: wanted a line that begins with {wanted}, got {line[:80]!r}")
        yield where, kind, value.strip()


def _read_csv(file: Path, kinds: Sequence[str]) -> Iterator[Entry]:
    header: list[str] = []
    columns: list[str] = []
    for row, where in _csv_rows(file, csv.reader((line for _, line in _lines(file)), strict=True)):
        if not header:
            header, columns = row, _columns(str(file), kinds, row)
        elif len(row) != len(header):
            raise VlpipeError(f"{where} has {len(row)} field(s), but the header has {len(header)}")
        else:
            entries = ((kind, row[header.index(kind)].strip()) for kind in columns)
            yield from ((where, kind, value) for kind, value in entries if value)
    if not header:
        _columns(str(file), kinds, ())


def _csv_rows(file: Path, reader: Any) -> Iterator[tuple[list[str], str]]:
    """Yields (row, location of its first line) for rows that are not empty."""
    while True:
        where = f"{file} line {reader.line_num + 1}"
        # The limit is global, 131,072 by default, and other columns may hold long texts. It also bounds what a quotation
        # mark that is left open collects.
        limit = csv.field_size_limit(MAX_LINE_BYTES)
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise VlpipeError(f"{where}: {_csv_error_text(error)}") from error
        finally:
            csv.field_size_limit(limit)
        if row is None:
            return
        if row:
            yield row, where


def _csv_error_text(error: csv.Error) -> str:
    if "new-line character" in str(error):
        return LONE_CR
    return f"{error}" + ("; is a quotation mark left open?" if "unexpected end" in str(error) else "")


def _read_parquet(file: Path, kinds: Sequence[str]) -> Iterator[Entry]:
    try:
        with pq.ParquetFile(file) as table:
            columns = _columns(str(file), kinds, table.schema_arrow.names)
            for kind in columns:
                dtype = table.schema_arrow.field(kind).type
                if _plain(dtype) not in (pa.string(), pa.large_string(), pa.string_view(), pa.null()):
                    raise VlpipeError(f"{file}: column {kind!r} is {dtype}, wanted text")
            rows = (
                row
                for b in table.iter_batches(BATCH_ROWS, columns=columns)
                for row in _plain_rows(b, columns)
            )
            for number, row in enumerate(rows, 1):
                where, entries = f"{file} row {number}", zip(columns, row, strict=True)
                yield from (
                    (where, kind, value.strip()) for kind, value in entries if value and value.strip()
                )
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise VlpipeError(f"{file} cannot be read as Parquet: {error}") from error


def _plain(dtype: pa.DataType) -> pa.DataType:
    return dtype.value_type if pa.types.is_dictionary(dtype) else dtype


def _plain_rows(batch: pa.RecordBatch, columns: Sequence[str]) -> Iterator[tuple[str | None, ...]]:
    return zip(*(batch[kind].to_pylist() for kind in columns), strict=True)


def _columns(where: str, kinds: Sequence[str], names: Sequence[str]) -> list[str]:
    """Returns the kinds that are columns. Raises VlpipeError if none is, if one occurs twice, or for a name like `Url`."""
    for kind in kinds:
        meant = [name for name in names if name.strip().lower() == kind]
        if len(meant) > 1:
            raise VlpipeError(f"{where} has the column {kind!r} {len(meant)} times; wanted one")
        if meant and meant != [kind]:
            raise VlpipeError(f"{where} has a column {meant[0]!r}; rename it to {kind!r}")
    found = [kind for kind in kinds if kind in names]
    if not found:
        raise VlpipeError(
            f"{where} has none of the columns {', '.join(kinds)}; its columns are {list(names)}"
        )
    return found


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    """Yields (location, line with its end) one at a time, because lists of hashes have millions of lines.

    Raises VlpipeError if one cannot be read.
    """
    for where, line in text_lines(file):
        if isinstance(line, BadLine):
            raise line
        yield where, line


READERS: dict[str, Callable[[Path, Sequence[str]], Iterator[Entry]]] = {
    ".txt": _read_txt,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
