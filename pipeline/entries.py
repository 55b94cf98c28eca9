"""Lists of things by kind, as a person writes them: a txt with `KIND:VALUE` lines, a csv or Parquet with such columns."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.forgotten import ascii_host

DOMAIN = re.compile(r"[^\s/:@.]+(\.[^\s/:@.]+)*")
Entry = tuple[str, str, str]  # where it stands ("FILE line 7"), kind, value


def read_entries(path: str | Path, kinds: Sequence[str]) -> Iterator[Entry]:
    """Every entry of a list; # begins a comment in a txt. VlpipeError says in which line what is wrong."""
    file = Path(path)
    if not file.is_file():
        raise VlpipeError(f"there is no list {path}")
    if file.suffix.lower() not in READERS:
        raise VlpipeError(f"{path}: such a list ends in {', '.join(READERS)}")
    yield from READERS[file.suffix.lower()](file, kinds)


def need_url(value: str, where: str) -> str:
    if not re.match(r"https?://[^/]", value, re.IGNORECASE):
        raise VlpipeError(f"{where}: wanted a url that begins with http:// or https://, got {value!r}")
    return value


def need_domain(value: str, where: str) -> str:
    """In lower case and ASCII, as hosts are compared."""
    value = ascii_host(value.lower().strip("."))
    if not DOMAIN.fullmatch(value):
        raise VlpipeError(f"{where}: wanted a domain like example.org, got {value!r}")
    return value


def need_hex(value: str, digits: int, where: str) -> str:
    """In lower case."""
    value = value.lower()
    if not re.fullmatch(f"[0-9a-f]{{{digits}}}", value):
        raise VlpipeError(f"{where}: wanted {digits} hexadecimal digits, got {value!r}")
    return value


def _read_txt(file: Path, kinds: Sequence[str]) -> Iterator[Entry]:
    for number, line in enumerate(_lines(file), 1):
        line, where = line.strip(), f"{file} line {number}"
        if not line or line.startswith("#"):
            continue
        if "url" in kinds and line.lower().startswith(("http://", "https://")):
            line = f"url:{line}"
        kind, colon, value = line.partition(":")
        if kind not in kinds or not colon or not value.strip():
            wanted = ", ".join(f"{k}:..." for k in kinds)
            raise VlpipeError(f"{where}: wanted {wanted}, got {line[:80]!r}")
        yield where, kind, value.strip()


def _read_csv(file: Path, kinds: Sequence[str]) -> Iterator[Entry]:
    reader = csv.DictReader(_lines(file), strict=True)
    columns = _columns(str(file), kinds, reader.fieldnames or ())
    try:
        for row in reader:
            where = f"{file} line {reader.line_num}"
            if None in row or None in row.values():
                raise VlpipeError(f"{where}: wanted {len(reader.fieldnames or ())} fields")
            yield from ((where, kind, row[kind].strip()) for kind in columns if row[kind].strip())
    except csv.Error as error:
        raise VlpipeError(f"{file} line {reader.line_num}: {error}") from error


def _read_parquet(file: Path, kinds: Sequence[str]) -> Iterator[Entry]:
    try:
        table = pq.read_table(file)
    except pa.ArrowInvalid as error:
        raise VlpipeError(f"{file} is no readable Parquet file: {error}") from error
    for kind in _columns(str(file), kinds, table.schema.names):
        if table.schema.field(kind).type not in (pa.string(), pa.large_string()):
            raise VlpipeError(f"{file}: column {kind!r} is {table.schema.field(kind).type}, wanted text")
        for number, value in enumerate(table[kind].to_pylist(), 1):
            if value and value.strip():
                yield f"{file} row {number}", kind, value.strip()


def _columns(where: str, kinds: Sequence[str], there: Sequence[str]) -> list[str]:
    found = [kind for kind in kinds if kind in there]
    if not found:
        raise VlpipeError(f"{where} has none of the columns {', '.join(kinds)}; it has {list(there)}")
    return found


def _lines(file: Path) -> Iterator[str]:
    """One at a time: lists of hashes have millions."""
    with open(file, "rb") as handle:
        for number, line in enumerate(handle, 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise VlpipeError(f"{file} line {number} is not UTF-8") from None


READERS: dict[str, Callable[[Path, Sequence[str]], Iterator[Entry]]] = {
    ".txt": _read_txt,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
