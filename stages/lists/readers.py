"""Reads the rows of list files: parquet, tsv, csv, jsonl, json. One reader per format, all with the same result.

tsv has no quoting (a tab always ends a field, as in CC3M), csv has. json is an array of objects, as BLIP's lists of web
captions; one object of arrays of equal length, as SBU's captions; or JSON lines under that name. Blank lines are no rows.
Numbers are kept as written; NaN is null.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlpipe.pipeline.errors import VlpipeError, shown
from vlpipe.pipeline.storage.text_lines import MAX_LINE_BYTES, BadLine, text_lines
from vlpipe.stages.lists.columns import Wanted, find_columns
from vlpipe.stages.lists.json_values import Repeated, array_items, is_by_columns, load_json, parse_json

BATCH_ROWS, BATCH_BYTES = 4096, 1 << 25
NO_HEADER = "; for a list without a header line give `columns`"
# A row: its position ("file line 7"), and its values by column or the error.
Row = tuple[str, "Mapping[str, Any] | BadLine"]
Fields = Iterator[tuple[str, "list[str] | BadLine"]]


def read_rows(
    file: Path, wanted: Wanted, columns: Sequence[str] | None = None, encoding: str = "utf-8"
) -> Iterator[Row]:
    """Yields the rows of a file in order, with the values of the wanted columns.

    wanted: parameter -> column name; a row is (position, column name -> value). columns: all column names, for a tsv or csv
    without a header line. Raises VlpipeError if the file or its columns are wrong; yields a BadLine for a row that cannot
    be read.
    """
    yield from READERS[file.suffix.lower()](file, wanted, columns, encoding)


def _read_parquet(file: Path, wanted: Wanted, columns: Sequence[str] | None, encoding: str) -> Iterator[Row]:
    if columns is not None:
        raise VlpipeError(
            f"{file}: remove `columns`: it names the columns of a tsv or csv, and a Parquet file names its own"
        )
    try:
        # does not hold a whole row group
        parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
    except pa.ArrowInvalid as error:
        raise VlpipeError(f"{file} is not a readable Parquet file: {error}") from error
    with parquet:
        there = parquet.schema_arrow.names
        names = {name: there[n] for name, n in find_columns(str(file), wanted, there).items()}
        number = 0
        for batch in _batches(parquet, list(names.values())):
            values = {
                name: _values(batch.column(real), f"{file} column {real!r}") for name, real in names.items()
            }
            for row in range(batch.num_rows):
                number += 1
                yield f"{file} row {number}", {name: column[row] for name, column in values.items()}


def _batches(parquet: pq.ParquetFile, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yields batches of at most BATCH_ROWS rows and about BATCH_BYTES, by the average size of a row in its row group."""
    for group in range(parquet.num_row_groups):
        about = parquet.metadata.row_group(group)
        chunks = (about.column(n) for n in range(about.num_columns))
        num_bytes = sum(c.total_uncompressed_size for c in chunks if _top(c.path_in_schema, names))
        num_rows = max(1, min(BATCH_ROWS, BATCH_BYTES * about.num_rows // max(1, num_bytes)))
        yield from parquet.iter_batches(num_rows, row_groups=[group], columns=list(names))


def _top(path: str, names: Sequence[str]) -> bool:
    return any(path == name or path.startswith(f"{name}.") for name in names)


def _values(column: pa.Array, where: str) -> list[Any]:
    """Returns each value as text, bytes (binary columns), None, or a list of these."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _values(column.dictionary_decode(), where)
    if _is_list(kind):
        flat = iter(_plain(column.flatten(), where))
        lengths = pc.list_value_length(column).to_pylist()
        return [None if n is None else [next(flat) for _ in range(n)] for n in lengths]
    return _plain(column, where)


def _is_list(kind: pa.DataType) -> bool:
    types = pa.types
    kinds = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    return any(one(kind) for one in (*kinds, types.is_list_view, types.is_large_list_view))


def _plain(column: pa.Array, where: str) -> list[str | bytes | None]:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if pa.types.is_floating(kind):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, kind), column)
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        try:
            column = column.cast(pa.large_string())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise VlpipeError(f"{where} has the type {kind}; wanted text, or a list of texts") from error
    found: list[str | bytes | None] = column.cast(pa.large_binary()).to_pylist()
    return found


def _read_tsv(file: Path, wanted: Wanted, columns: Sequence[str] | None, encoding: str) -> Iterator[Row]:
    fields = (
        (where, line if isinstance(line, BadLine) else line.rstrip("\r\n").split("\t"))
        for where, line in text_lines(file, encoding)
        if isinstance(line, BadLine) or line.strip(" \r\n")
    )
    yield from _with_header(file, fields, wanted, columns)


def _read_csv(file: Path, wanted: Wanted, columns: Sequence[str] | None, encoding: str) -> Iterator[Row]:
    yield from _with_header(file, _csv_fields(file, encoding), wanted, columns)


def _csv_fields(file: Path, encoding: str) -> Fields:
    """Yields (position, fields) per row. A field may span lines; an unreadable line makes its whole row a BadLine.

    Broken quoting raises VlpipeError, because the start of the next row is unknown.
    """
    bad: list[BadLine] = []

    def readable() -> Iterator[str]:
        for _, line in text_lines(file, encoding):
            if isinstance(line, BadLine):
                bad.append(line)
                line = (
                    '"\n' if line.odd_quotes else "x\n"
                )  # a quoted field begins or ends where it does in the line
            yield line

    reader = csv.reader(readable(), strict=True)
    while True:
        where = f"{file} line {reader.line_num + 1}"
        # The limit is global, 131,072 by default. It also bounds what a quotation mark that is left open collects.
        limit = csv.field_size_limit(MAX_LINE_BYTES)
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise bad[0] if bad else VlpipeError(f"{where}: {error}") from error
        finally:
            csv.field_size_limit(limit)
        if bad:
            yield where, bad[0]
            bad.clear()
        elif fields and not (len(fields) == 1 and fields[0].isspace()):
            yield where, fields


def _with_header(file: Path, rows: Fields, wanted: Wanted, columns: Sequence[str] | None) -> Iterator[Row]:
    if columns is None:
        where, header = next(rows, (f"{file} line 1", list[str]()))
        if isinstance(header, BadLine):
            raise header
        columns = header
        places = find_columns(where, wanted, columns, NO_HEADER)
    else:
        places = find_columns("`columns`", wanted, columns)
    for where, fields in rows:
        if isinstance(fields, BadLine):
            yield where, fields
        elif len(fields) != len(columns):
            some = ", ".join(shown(name, 40)[1:-1] for name in columns[:20])
            message = f"{where} has {len(fields)} field(s), but the list has {len(columns)} columns: {some}"
            yield where, BadLine(message, "\t".join(fields))
        else:
            yield where, {name: fields[place] for name, place in places.items()}


def _read_jsonl(file: Path, wanted: Wanted, columns: Sequence[str] | None, encoding: str) -> Iterator[Row]:
    if columns is not None:
        raise VlpipeError(
            f"{file}: remove `columns`: it names the columns of a tsv or csv, and JSON names its own"
        )
    yield from read_json_lines(file, wanted, encoding)


def read_json_lines(file: Path | str, wanted: Wanted, encoding: str = "utf-8") -> Iterator[Row]:
    """Yields the rows of a file of JSON lines with any ending, as `read_rows`."""
    for where, line in text_lines(file, encoding):
        if isinstance(line, BadLine):
            yield where, line
        elif line.strip():
            yield where, _json_line(where, line.rstrip("\r\n"), wanted)


def _json_line(where: str, line: str, wanted: Wanted) -> Mapping[str, Any] | BadLine:
    try:
        record = parse_json(line)
    except ValueError as error:
        return BadLine(f"{where} is not valid JSON: {error}", line)
    except RecursionError:
        return BadLine(f"{where} cannot be read: its JSON is nested too deeply", line)
    return _json_row(where, record, wanted)


def _json_row(where: str, record: Any, wanted: Wanted) -> Mapping[str, Any] | BadLine:
    names = list(dict.fromkeys(wanted.values()))
    if not isinstance(record, dict):
        listed = " and ".join(repr(name) for name in names)
        return BadLine(f"{where}: wanted a JSON object with the keys {listed}", json.dumps(record))
    try:
        keys = record.keys_as_written if isinstance(record, Repeated) else list(record)
        places = find_columns(where, wanted, keys)
    except VlpipeError as error:
        return BadLine(str(error), json.dumps(record)).with_settings(*error.settings)
    return {name: record[keys[place]] for name, place in places.items()}


def _read_json(file: Path, wanted: Wanted, columns: Sequence[str] | None, encoding: str) -> Iterator[Row]:
    if columns is not None:
        raise VlpipeError(
            f"{file}: remove `columns`: it names the columns of a tsv or csv, and JSON names its own"
        )
    items = array_items(file, encoding)
    if items is None and is_by_columns(file, encoding):
        yield from _by_columns(file, wanted)
        return
    if items is None:
        yield from _read_jsonl(file, wanted, None, encoding)
        return
    for where, record in items:
        yield where, _json_row(where, record, wanted)


def _by_columns(file: Path, wanted: Wanted) -> Iterator[Row]:
    """Yields the rows of an object of arrays: {"image_urls": [...], "captions": [...]}."""
    content = load_json(file)
    there = list(content)
    columns = {name: content[there[place]] for name, place in find_columns(str(file), wanted, there).items()}
    for name, values in columns.items():
        if not isinstance(values, list):
            raise VlpipeError(f"{file}: wanted an array of values under {name!r}, got {shown(values)}")
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise VlpipeError(
            f"{file}: the arrays {', '.join(f'{k!r} of {n:,}' for k, n in lengths.items())} differ in length"
        )
    for number, values in enumerate(zip(*columns.values(), strict=True)):
        yield f"{file} item {number + 1}", dict(zip(columns, map(_as_written, values), strict=True))


def _as_written(value: Any) -> Any:
    """Returns a number as text, NaN as None, other values as they are."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return None if value != value else json.dumps(value)
    return value


Reader = Callable[[Path, Wanted, "Sequence[str] | None", str], Iterator[Row]]
READERS: dict[str, Reader] = {
    ".parquet": _read_parquet,
    ".tsv": _read_tsv,
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
}
