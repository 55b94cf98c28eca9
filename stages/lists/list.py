"""Reads lists of url + text (parquet, tsv, csv, jsonl; a file or a folder) as a stream, strictly in one encoding.

An unreadable line stops the step with an error that names file and line, or (`bad_lines: reject`) becomes a row that is
rejected for that reason: no row is skipped silently.
tsv has no quoting (a tab always ends a field, as in CC3M), csv has. Numbers are kept as written.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from vlpipe.pipeline.errors import VlpipeError, did_you_mean
from vlpipe.stages.common.row import LISTED, ListIds, single_texts

BATCH_ROWS = 4096


class Pair(NamedTuple):
    """One line of a list; null values are empty strings."""

    url: str
    text: str
    expected: str = ""  # hex digest of the expected bytes
    fault: str = ""  # error text if unreadable; `text` is then the line, with undecodable bytes escaped


class BadLine(VlpipeError):
    """An unreadable line. `line`: its content, with undecodable bytes escaped."""

    def __init__(self, message: str, line: str) -> None:
        self.line = line
        super().__init__(message)


# Optional columns of a list in addition to LISTED.
EXPECTED = pa.field("expected", pa.string())
FAULT = pa.field("fault", pa.string())


def listed(
    pairs: Iterator[Pair], *, source: str, text_source: str, more: Sequence[pa.Field] = ()
) -> Iterator[pa.Table]:
    """Yields rows of schema LISTED and `more` (EXPECTED, FAULT). An empty text gives a row without texts, to which a
    captioner may still add one."""
    ids = ListIds(source)
    while batch := list(islice(pairs, BATCH_ROWS)):
        urls, texts = [pair.url for pair in batch], [pair.text for pair in batch]
        columns: dict[str, Any] = {
            "id": ids.of(urls, texts),
            "url": urls,
            "texts": single_texts(texts, text_source),
        }
        columns |= {field.name: [getattr(pair, field.name) for pair in batch] for field in more}
        yield pa.table(columns, schema=pa.schema([*LISTED, *more]))


def read_pairs(
    path: str,
    *,
    url: str,
    text: str,
    columns: Sequence[str] | None = None,
    expected: str | None = None,
    encoding: str = "utf-8",
    reject_bad_lines: bool = False,
) -> Iterator[Pair]:
    """Yields all lines in order; the files of a folder in the order of their names.

    url, text, expected: names of the columns to read. columns: all column names, for a tsv or csv without a header line.
    Raises VlpipeError if a file or its columns are wrong, BadLine for an unreadable line unless `reject_bad_lines`.
    """
    names = (url, text) if expected is None else (url, text, expected)
    try:
        codecs.lookup(encoding)
    except LookupError as error:
        raise VlpipeError(
            f"there is no encoding {encoding!r}; use one such as utf-8, latin-1, shift_jis"
        ) from error
    for file in list_files(path):
        for where, row in READERS[file.suffix.lower()](file, names, columns, encoding):
            try:
                if isinstance(row, BadLine):
                    raise row
                yield Pair(*(text_of(row[name], where, encoding) for name in names))
            except BadLine as bad:
                if not reject_bad_lines:
                    raise
                yield Pair("", bad.line, fault=str(bad).removeprefix(f"{file.parent}/"))


def list_files(path: str) -> list[Path]:
    """Returns the list files at `path`: the file itself, or those in the folder, except names that start with . or _.

    Raises VlpipeError if there are none.
    """
    root = Path(path)
    if not root.exists():
        raise VlpipeError(f"there is no list {path}")
    if root.is_file():
        if root.suffix.lower() not in READERS:
            raise VlpipeError(f"{path}: the name of a list must end in {', '.join(READERS)}")
        return [root]
    found = [f for f in sorted(root.iterdir()) if f.suffix.lower() in READERS and f.name[0] not in "._"]
    if not found:
        raise VlpipeError(f"folder {path} contains no list: no file ends in {', '.join(READERS)}")
    return found


def count_at_most(path: str) -> int:
    """Returns an upper bound of the number of lines of a list, without parsing them."""
    return sum(_count(file) for file in list_files(path))


def _count(file: Path) -> int:
    if file.suffix.lower() == ".parquet":
        try:
            return int(pq.read_metadata(file).num_rows)
        except pa.ArrowInvalid as error:
            raise VlpipeError(f"{file} is not a readable Parquet file: {error}") from error
    with open(file, "rb", buffering=0) as handle:
        return 1 + sum(block.count(b"\n") for block in iter(lambda: handle.read(1 << 20), b""))


# A row: its position ("file line 7"), and its values by column or the error.
Row = tuple[str, "Mapping[str, Any] | BadLine"]
Names = tuple[str, ...]


def _read_parquet(file: Path, names: Names, columns: Sequence[str] | None, encoding: str) -> Iterator[Row]:
    if columns is not None:
        raise VlpipeError(f"{file}: a Parquet file names its own columns; `columns` is for tsv and csv")
    try:
        parquet = pq.ParquetFile(
            file, pre_buffer=False, buffer_size=1 << 20
        )  # does not hold a whole row group
    except pa.ArrowInvalid as error:
        raise VlpipeError(f"{file} is not a readable Parquet file: {error}") from error
    with parquet:
        _need_columns(str(file), names, parquet.schema_arrow.names)
        number = 0
        for batch in parquet.iter_batches(BATCH_ROWS, columns=list(dict.fromkeys(names))):
            values = {name: _strings(batch.column(name), f"{file} column {name!r}") for name in set(names)}
            for row in range(batch.num_rows):
                number += 1
                yield f"{file} row {number}", {name: column[row] for name, column in values.items()}


def _strings(column: pa.Array, where: str) -> list[str | bytes | None]:
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        try:
            column = column.cast(pa.large_string())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise VlpipeError(f"{where} is {column.type}; wanted text") from error
    found: list[str | bytes | None] = column.cast(pa.large_binary()).to_pylist()
    return found


def _read_tsv(file: Path, names: Names, columns: Sequence[str] | None, encoding: str) -> Iterator[Row]:
    fields = (
        (where, line if isinstance(line, BadLine) else line.removesuffix("\r").split("\t"))
        for where, line in _lines(file, encoding)
    )
    yield from _with_header(file, fields, names, columns)


def _read_csv(file: Path, names: Names, columns: Sequence[str] | None, encoding: str) -> Iterator[Row]:
    yield from _with_header(file, _csv_fields(file, encoding), names, columns)


def _csv_fields(file: Path, encoding: str) -> Iterator[tuple[str, list[str] | BadLine]]:
    """Yields (position, fields) per row. A field may span lines; an unreadable line makes its whole row unreadable.

    Broken quoting raises VlpipeError, because the start of the next row is unknown.
    """
    bad: list[BadLine] = []

    def readable() -> Iterator[str]:
        for _, line in _lines(file, encoding):
            if isinstance(line, BadLine):
                bad.append(line)
                line = line.line
            yield line + "\n"

    reader = csv.reader(readable(), strict=True)
    while True:
        where = f"{file} line {reader.line_num + 1}"
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise bad[0] if bad else VlpipeError(f"{where}: {error}") from error
        if bad:
            yield where, bad[0]
            bad.clear()
        elif fields:
            yield where, fields


def _with_header(
    file: Path,
    rows: Iterator[tuple[str, list[str] | BadLine]],
    names: Names,
    columns: Sequence[str] | None,
) -> Iterator[Row]:
    if columns is None:
        _, header = next(rows, ("", list[str]()))
        if isinstance(header, BadLine):
            raise header
        columns = header
        _need_columns(f"{file} line 1", names, columns, "; for a list without a header line give `columns`")
    else:
        _need_columns("`columns`", names, columns)
    for where, fields in rows:
        if isinstance(fields, BadLine):
            yield where, fields
        elif len(fields) != len(columns):
            message = f"{where} has {len(fields)} field(s), wanted {len(columns)}: {', '.join(columns)}"
            yield where, BadLine(message, "\t".join(fields))
        else:
            yield where, dict(zip(columns, fields, strict=True))


def _read_jsonl(file: Path, names: Names, columns: Sequence[str] | None, encoding: str) -> Iterator[Row]:
    if columns is not None:
        raise VlpipeError(f"{file}: JSON lines name their own fields; `columns` is for tsv and csv")
    for where, line in _lines(file, encoding):
        if isinstance(line, BadLine):
            yield where, line
        elif line.strip():
            yield where, _json_row(where, line, names)


def _json_row(where: str, line: str, names: Names) -> Mapping[str, Any] | BadLine:
    try:
        row = json.loads(line, parse_int=str, parse_float=str)
    except ValueError as error:
        return BadLine(f"{where} is not JSON: {error}", line)
    except RecursionError:
        return BadLine(f"{where} is not JSON: it is nested too deeply", line)
    if not isinstance(row, dict):
        return BadLine(f"{where}: wanted an object with {names[0]!r} and {names[1]!r}", line)
    try:
        _need_columns(where, names, list(row))
    except VlpipeError as error:
        return BadLine(str(error), line)
    return row


def lines(file: Path | str) -> Iterator[tuple[str, str]]:
    r"""Yields (position, line without its \n) of a UTF-8 file. Raises BadLine at the first line that is not UTF-8."""
    for where, line in _lines(file, "utf-8"):
        if isinstance(line, BadLine):
            raise line
        yield where, line


def _lines(file: Path | str, encoding: str) -> Iterator[tuple[str, str | BadLine]]:
    """Yields (position, line or BadLine). Bytes are decoded line by line, so that an error names the line and byte."""
    with open(file, "rb") as handle:
        for number, line in enumerate(handle, 1):
            where = f"{file} line {number}"
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            try:
                yield where, _decoded(line.removesuffix(b"\n"), where, encoding)
            except BadLine as bad:
                yield where, bad


def _decoded(data: bytes, where: str, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        message = f"{where} is not {encoding.upper()}: {error.reason} at byte {error.start + 1}"
        raise BadLine(message, data.decode("ascii", "backslashreplace")) from error


def text_of(value: Any, where: str, encoding: str = "utf-8") -> str:
    """Returns a text unchanged, or "" for null. Raises BadLine if the value is not text."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        return _decoded(value, where, encoding)
    if not isinstance(value, str):
        shown = json.dumps(value)
        raise BadLine(f"{where}: wanted text, got {shown[:80]}", shown)
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):  # possible in JSON
        shown = json.dumps(value)
        raise BadLine(f"{where}: unpaired surrogate in {shown[:80]}", shown)
    return value


def _need_columns(where: str, names: Sequence[str], there: Sequence[str], hint: str = "") -> None:
    for name in names:
        if name not in there:
            raise VlpipeError(f"{where} has no column {name!r}{did_you_mean(name, there)}{hint}")


Reader = Callable[[Path, Names, "Sequence[str] | None", str], Iterator[Row]]
READERS: dict[str, Reader] = {
    ".parquet": _read_parquet,
    ".tsv": _read_tsv,
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
}
