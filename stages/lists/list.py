"""Read lists of url + text (parquet, tsv, csv, jsonl; a file or a folder) as a stream, strictly in one encoding.

A line that cannot be read stops the step, which names file and line, or (`bad_lines: reject`) becomes a row that is
rejected with that reason: no row is skipped in silence.
tsv has no quoting (a tab ends a field, as in CC3M); csv has. Numbers are taken as they are written.
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
    """One line of a list; what is missing or null is empty."""

    url: str
    text: str
    expected: str = ""  # hex digest of the bytes to come
    fault: str = ""  # why the line cannot be read; `text` is then the line, as far as it can be shown


class BadLine(VlpipeError):
    """A line that cannot be read. `line`: as far as it can be shown."""

    def __init__(self, said: str, line: str) -> None:
        self.line = line
        super().__init__(said)


# Columns a list may have beside LISTED, for the stage that asked for them.
EXPECTED = pa.field("expected", pa.string())
FAULT = pa.field("fault", pa.string())


def listed(
    pairs: Iterator[Pair], *, source: str, text_source: str, more: Sequence[pa.Field] = ()
) -> Iterator[pa.Table]:
    """Rows of schema LISTED and `more` (EXPECTED, FAULT). An empty text gives a row without texts: a captioner may
    still write one."""
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
    """All lines, in order; of a folder its files in order of name.

    url, text, expected: names of the columns. columns: the names, for a tsv or csv without a header line.
    """
    names = (url, text) if expected is None else (url, text, expected)
    try:
        codecs.lookup(encoding)
    except LookupError as error:
        raise VlpipeError(f"there is no encoding {encoding!r}; such as utf-8, latin-1, shift_jis") from error
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
    """The list files at `path`: itself, or those in the folder (hidden ones and `_...` are not looked at)."""
    here = Path(path)
    if not here.exists():
        raise VlpipeError(f"there is no list {path}")
    if here.is_file():
        if here.suffix.lower() not in READERS:
            raise VlpipeError(f"{path}: a list ends in {', '.join(READERS)}")
        return [here]
    found = [f for f in sorted(here.iterdir()) if f.suffix.lower() in READERS and f.name[0] not in "._"]
    if not found:
        raise VlpipeError(f"folder {path} has no list in it: no file ends in {', '.join(READERS)}")
    return found


def count_at_most(path: str) -> int:
    """How many lines a list has at most, without reading them one by one."""
    return sum(_count(file) for file in list_files(path))


def _count(file: Path) -> int:
    if file.suffix.lower() == ".parquet":
        try:
            return int(pq.read_metadata(file).num_rows)
        except pa.ArrowInvalid as error:
            raise VlpipeError(f"{file} is no readable Parquet file: {error}") from error
    with open(file, "rb", buffering=0) as handle:
        return 1 + sum(block.count(b"\n") for block in iter(lambda: handle.read(1 << 20), b""))


# Where it stands ("file line 7"), its values by column or what is wrong with it.
Row = tuple[str, "Mapping[str, Any] | BadLine"]
Names = tuple[str, ...]


def _read_parquet(file: Path, names: Names, columns: Sequence[str] | None, encoding: str) -> Iterator[Row]:
    if columns is not None:
        raise VlpipeError(f"{file}: a Parquet file names its own columns; `columns` is for tsv and csv")
    try:
        parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)  # no row group is held whole
    except pa.ArrowInvalid as error:
        raise VlpipeError(f"{file} is no readable Parquet file: {error}") from error
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
    """A field may go on over lines: one that cannot be read spoils the row it is in. Broken quoting ends the reading,
    as nobody knows where the next row begins."""
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
            said = f"{where} has {len(fields)} field(s), wanted {len(columns)}: {', '.join(columns)}"
            yield where, BadLine(said, "\t".join(fields))
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
        return BadLine(f"{where} is not JSON: it is nested too deep", line)
    if not isinstance(row, dict):
        return BadLine(f"{where}: wanted an object with {names[0]!r} and {names[1]!r}", line)
    try:
        _need_columns(where, names, list(row))
    except VlpipeError as error:
        return BadLine(str(error), line)
    return row


def lines(file: Path | str) -> Iterator[tuple[str, str]]:
    r"""(where, line without its \n) of a UTF-8 file; BadLine names the first that is not."""
    for where, line in _lines(file, "utf-8"):
        if isinstance(line, BadLine):
            raise line
        yield where, line


def _lines(file: Path | str, encoding: str) -> Iterator[tuple[str, str | BadLine]]:
    """Bytes are read, so that a bad one is named with its line."""
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
        said = f"{where} is not {encoding.upper()}: {error.reason} at byte {error.start + 1}"
        raise BadLine(said, data.decode("ascii", "backslashreplace")) from error


def text_of(value: Any, where: str, encoding: str = "utf-8") -> str:
    """A text as it is, an empty one for null; BadLine for what is no text."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        return _decoded(value, where, encoding)
    if not isinstance(value, str):
        shown = json.dumps(value)
        raise BadLine(f"{where}: wanted text, got {shown[:80]}", shown)
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):  # JSON can spell these
        shown = json.dumps(value)
        raise BadLine(f"{where}: half a surrogate pair stands alone in {shown[:80]}", shown)
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
