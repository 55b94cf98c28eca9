"""What is to be forgotten, as a person writes it: ids, URLs, domains, or sha256 of the content; txt, csv or Parquet."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.forgotten import canonical_url, domains_of

KINDS = ("id", "url", "domain", "sha256")
DOMAIN = re.compile(r"[^\s/:@.]+(\.[^\s/:@.]+)*")
SHA256 = re.compile(r"[0-9a-f]{64}")
Entry = tuple[str, str, str]  # where it stands ("FILE line 7"), kind, value


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """ids as they are, URLs as `canonical_url` spells them, domains and sha256 in lower case."""

    id: frozenset[str]
    url: frozenset[str]
    domain: frozenset[str]
    sha256: frozenset[str]

    def __len__(self) -> int:
        return sum(len(getattr(self, kind)) for kind in KINDS)

    def matches(self, url: str | None) -> Iterator[tuple[str, str]]:
        """(kind, value) of each entry that means this URL."""
        if url and canonical_url(url) in self.url:
            yield "url", canonical_url(url)
        if url and self.domain:
            yield from (("domain", name) for name in domains_of(url) if name in self.domain)

    def has_url(self, url: str | None) -> bool:
        return next(self.matches(url), None) is not None


def read_wanted(path: str) -> Wanted:
    """The list in a txt (`id:...`, `url:...`, `domain:...`, `sha256:...`, one a line; # begins a comment), or in a csv
    or Parquet file with columns of these names. VlpipeError says in which line what is wrong."""
    file = Path(path)
    if not file.is_file():
        raise VlpipeError(f"there is no list {path}")
    if file.suffix.lower() not in READERS:
        raise VlpipeError(f"{path}: a list of what to forget ends in {', '.join(READERS)}")
    found: dict[str, set[str]] = {kind: set() for kind in KINDS}
    for where, kind, value in READERS[file.suffix.lower()](file):
        found[kind].add(_checked(where, kind, value))
    if not any(found.values()):
        raise VlpipeError(f"{path} is empty: there is nothing to forget")
    return Wanted(**{kind: frozenset(values) for kind, values in found.items()})


def _checked(where: str, kind: str, value: str) -> str:
    if kind == "url":
        if not re.match(r"https?://[^/]", value, re.IGNORECASE):
            raise VlpipeError(f"{where}: wanted a url that begins with http:// or https://, got {value!r}")
        return canonical_url(value)
    if kind == "domain":
        value = value.lower().strip(".")
        if not DOMAIN.fullmatch(value):
            raise VlpipeError(f"{where}: wanted a domain like example.org, got {value!r}")
    if kind == "sha256":
        value = value.lower()
        if not SHA256.fullmatch(value):
            raise VlpipeError(f"{where}: wanted 64 hexadecimal digits, got {value!r}")
    return value


def _read_txt(file: Path) -> Iterator[Entry]:
    for number, line in enumerate(_text(file).splitlines(), 1):
        line, where = line.strip(), f"{file} line {number}"
        if not line or line.startswith("#"):
            continue
        if line.lower().startswith(("http://", "https://")):
            line = f"url:{line}"
        kind, colon, value = line.partition(":")
        if kind not in KINDS or not colon or not value.strip():
            wanted = ", ".join(f"{k}:..." for k in KINDS)
            raise VlpipeError(f"{where}: wanted {wanted}, got {line[:80]!r}")
        yield where, kind, value.strip()


def _read_csv(file: Path) -> Iterator[Entry]:
    reader = csv.DictReader(_text(file).splitlines(), strict=True)
    columns = _columns(str(file), reader.fieldnames or ())
    try:
        for row in reader:
            where = f"{file} line {reader.line_num}"
            if None in row or None in row.values():
                raise VlpipeError(f"{where}: wanted {len(reader.fieldnames or ())} fields")
            yield from ((where, kind, row[kind].strip()) for kind in columns if row[kind].strip())
    except csv.Error as error:
        raise VlpipeError(f"{file} line {reader.line_num}: {error}") from error


def _read_parquet(file: Path) -> Iterator[Entry]:
    try:
        table = pq.read_table(file)
    except pa.ArrowInvalid as error:
        raise VlpipeError(f"{file} is no readable Parquet file: {error}") from error
    for kind in _columns(str(file), table.schema.names):
        if table.schema.field(kind).type not in (pa.string(), pa.large_string()):
            raise VlpipeError(f"{file}: column {kind!r} is {table.schema.field(kind).type}, wanted text")
        for number, value in enumerate(table[kind].to_pylist(), 1):
            if value and value.strip():
                yield f"{file} row {number}", kind, value.strip()


def _columns(where: str, there: Sequence[str]) -> list[str]:
    found = [kind for kind in KINDS if kind in there]
    if not found:
        raise VlpipeError(f"{where} has none of the columns {', '.join(KINDS)}; it has {list(there)}")
    return found


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise VlpipeError(f"{file} line {line} is not UTF-8") from None


READERS: dict[str, Callable[[Path], Iterator[Entry]]] = {
    ".txt": _read_txt,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
