"""Read lists of url + text (parquet, tsv, csv, jsonl; a file or a folder) as a stream, strictly UTF-8.

A list that cannot be read stops the step and names file and line: no row is skipped in silence.
tsv has no quoting (a tab ends a field, as in CC3M); csv has. Numbers are taken as they are written.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from vlpipe.pipeline.errors import VlpipeError, did_you_mean
from vlpipe.stages.row import LISTED, RowIds, text

BATCH_ROWS = 4096


class Pair(NamedTuple):
    """One line of a list; what is missing or null is empty."""

    url: str
    text: str


def listed(pairs: Iterator[Pair], *, source: str, text_source: str) -> Iterator[pa.Table]:
    """Rows of schema LISTED. An empty text gives a row without texts: a captioner may still write one."""
    ids = RowIds(source)
    while batch := list(islice(pairs, BATCH_ROWS)):
        yield pa.table(
            {
                "id": [ids.next(*pair) for pair in batch],
                "url": [pair.url for pair in batch],
                "texts": [[text(pair.text, text_source)] if pair.text else [] for pair in batch],
            },
            schema=LISTED,
        )


def read_pairs(path: str, *, url: str, text: str, columns: Sequence[str] | None = None) -> Iterator[Pair]:
    """All lines, in order; of a folder its files in order of name.

    url, text: names of the columns. columns: the names, for a tsv or csv without a header line.
    """
    for file in list_files(path):
        for where, row in READERS[file.suffix.lower()](file, (url, text), columns):
            yield Pair(text_of(row[url], where), text_of(row[text], where))


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


Row = tuple[str, Mapping[str, Any]]  # where it stands ("file line 7"), its values by column


def _read_parquet(file: Path, names: tuple[str, str], columns: Sequence[str] | None) -> Iterator[Row]:
    if columns is not None:
        raise VlpipeError(f"{file}: a Parquet file names its own columns; `columns` is for tsv and csv")
    try:
        parquet = pq.ParquetFile(file)
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


def _read_tsv(file: Path, names: tuple[str, str], columns: Sequence[str] | None) -> Iterator[Row]:
    fields = ((where, line.removesuffix("\r").split("\t")) for where, line in lines(file))
    yield from _with_header(file, fields, names, columns)


def _read_csv(file: Path, names: tuple[str, str], columns: Sequence[str] | None) -> Iterator[Row]:
    yield from _with_header(file, _csv_fields(file), names, columns)


def _csv_fields(file: Path) -> Iterator[tuple[str, list[str]]]:
    reader = csv.reader((line + "\n" for _, line in lines(file)), strict=True)
    while True:
        where = f"{file} line {reader.line_num + 1}"
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise VlpipeError(f"{where}: {error}") from error
        if fields:
            yield where, fields


def _with_header(
    file: Path,
    rows: Iterator[tuple[str, list[str]]],
    names: tuple[str, str],
    columns: Sequence[str] | None,
) -> Iterator[Row]:
    if columns is None:
        _, columns = next(rows, ("", []))
        _need_columns(f"{file} line 1", names, columns, "; for a list without a header line give `columns`")
    else:
        _need_columns("`columns`", names, columns)
    for where, fields in rows:
        if len(fields) != len(columns):
            raise VlpipeError(
                f"{where} has {len(fields)} field(s), wanted {len(columns)}: {', '.join(columns)}"
            )
        yield where, dict(zip(columns, fields, strict=True))


def _read_jsonl(file: Path, names: tuple[str, str], columns: Sequence[str] | None) -> Iterator[Row]:
    if columns is not None:
        raise VlpipeError(f"{file}: JSON lines name their own fields; `columns` is for tsv and csv")
    for where, line in lines(file):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_int=str, parse_float=str)
        except ValueError as error:
            raise VlpipeError(f"{where} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise VlpipeError(f"{where}: wanted an object with {names[0]!r} and {names[1]!r}")
        _need_columns(where, names, list(row))
        yield where, row


def lines(file: Path | str) -> Iterator[tuple[str, str]]:
    r"""(where, line without its \n); bytes are read, so that a bad one is named with its line."""
    with open(file, "rb") as handle:
        for number, line in enumerate(handle, 1):
            where = f"{file} line {number}"
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            yield where, _utf8(line.removesuffix(b"\n"), where)


def _utf8(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise VlpipeError(f"{where} is not UTF-8: {error.reason} at byte {error.start + 1}") from error


def text_of(value: Any, where: str) -> str:
    """A text as it is, an empty one for null; VlpipeError for what is no text."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        return _utf8(value, where)
    if not isinstance(value, str):
        raise VlpipeError(f"{where}: wanted text, got {json.dumps(value)[:80]}")
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):  # JSON can spell these
        raise VlpipeError(f"{where}: half a surrogate pair stands alone in {json.dumps(value)[:80]}")
    return value


def _need_columns(where: str, names: Sequence[str], there: Sequence[str], hint: str = "") -> None:
    for name in names:
        if name not in there:
            raise VlpipeError(f"{where} has no column {name!r}{did_you_mean(name, there)}{hint}")


Reader = Callable[[Path, tuple[str, str], "Sequence[str] | None"], Iterator[Row]]
READERS: dict[str, Reader] = {
    ".parquet": _read_parquet,
    ".tsv": _read_tsv,
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
}
