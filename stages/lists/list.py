"""Reads lists of url + text (parquet, tsv, csv, jsonl, json; a file or a folder) as a stream, strictly in one encoding.

An unreadable line stops the step with an error that names file and line, or (`bad_lines: reject`) becomes a row that is
rejected for that reason: no row is skipped silently. A list of texts (a list column of Parquet, a JSON list) gives one row
with all of them. `readers` documents the formats, `columns` how columns are found.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.storage.text_lines import BadLine, decoded, text_lines
from vlpipe.stages.common.row import LISTED, ListIds
from vlpipe.stages.lists.readers import BATCH_BYTES, BATCH_ROWS, READERS, read_rows
from vlpipe.stages.lists.text_limit import TextLimit, text_lists


class Pair(NamedTuple):
    """One line of a list; null values are empty strings."""

    url: str
    text: str
    expected: str = ""  # hex digest of the expected bytes
    fault: str = ""  # error text if unreadable; `text` is then the line, with undecodable bytes escaped
    more_texts: tuple[str, ...] = ()  # if the list has several texts per URL: those after the first

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts that are not empty, in order."""
        if not self.more_texts:  # nearly all rows
            return (self.text,) if self.text else ()
        return tuple(text for text in (self.text, *self.more_texts) if text)


# Optional columns of a list in addition to LISTED.
EXPECTED = pa.field("expected", pa.string())
FAULT = pa.field("fault", pa.string())


def listed(
    pairs: Iterator[Pair],
    *,
    source: str,
    text_source: str,
    more: Sequence[pa.Field] = (),
    limit: TextLimit | None = None,
) -> Iterator[pa.Table]:
    """Yields tables of schema LISTED and `more` (of EXPECTED, FAULT), one row per pair. An empty text gives a row
    without texts, to which a captioner may still add one. Ids are computed from whole texts, before `limit` applies."""
    ids = ListIds(source)
    for batch in _batches(pairs):
        urls, texts = [pair.url for pair in batch], [pair.texts for pair in batch]
        columns: dict[str, Any] = {
            "id": ids.of(urls, ["\n".join(one) for one in texts]),
            "url": urls,
            "texts": text_lists(texts, text_source, limit or TextLimit()),
        }
        columns |= {field.name: [getattr(pair, field.name) for pair in batch] for field in more}
        yield pa.table(columns, schema=pa.schema([*LISTED, *more]))


def _batches(pairs: Iterator[Pair]) -> Iterator[list[Pair]]:
    """Yields batches of at most BATCH_ROWS pairs; a batch also ends when it has BATCH_BYTES characters or more."""
    batch: list[Pair] = []
    num_chars = 0
    for pair in pairs:
        batch.append(pair)
        num_chars += len(pair.url) + len(pair.text) + sum(map(len, pair.more_texts))
        if len(batch) >= BATCH_ROWS or num_chars >= BATCH_BYTES:
            yield batch
            batch, num_chars = [], 0
    if batch:
        yield batch


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
    Raises VlpipeError if a file or its columns are wrong. An unreadable line raises BadLine, or with `reject_bad_lines`
    gives a Pair whose `fault` is set.
    """
    wanted = {"url": url, "text": text} | ({} if expected is None else {"hash": expected})
    for file in list_files(path):
        for where, row in read_rows(file, wanted, columns, encoding):
            try:
                if isinstance(row, BadLine):
                    raise row
                texts = texts_of(row[text], where, encoding)
                yield Pair(
                    text_of(row[url], where, encoding),
                    texts[0] if texts else "",
                    "" if expected is None else text_of(row[expected], where, encoding),
                    more_texts=texts[1:],
                )
            except BadLine as bad:
                if not reject_bad_lines:
                    raise
                yield Pair("", bad.line, fault=str(bad).removeprefix(f"{file.parent}/"))


def list_files(path: str, endings: Collection[str] = READERS) -> list[Path]:
    """Returns the list files at `path`: the file itself, or those in the folder with one of the `endings`, by name;
    names that start with . or _ are left out.

    Raises VlpipeError if there are none, or the file has another ending.
    """
    root = Path(path)
    if not root.exists():
        raise VlpipeError(f"there is no file or folder {path}")
    if root.is_file():
        if root.suffix.lower() not in endings:
            raise VlpipeError(f"{path} cannot be read as a list: its name must end in {', '.join(endings)}")
        return [root]
    found = [f for f in sorted(root.iterdir()) if f.suffix.lower() in endings and f.name[0] not in "._"]
    if not found:
        raise VlpipeError(f"the folder {path} contains no list: no file name ends in {', '.join(endings)}")
    return found


def name_in_rows(path: str) -> str:
    """Returns the name of a file, for a parameter of stages whose rows have it: their keys have only the file's content.

    Empty for a folder, a path without an ending, the names in which are part of its digest.
    """
    return os.path.basename(path) if Path(path).suffix else ""


def count_at_most(path: str) -> int:
    """Returns an upper bound of the number of lines of a list, without parsing them."""
    return sum(_count(file) for file in list_files(path))


def _count(file: Path) -> int:
    ending = file.suffix.lower()
    if ending == ".parquet":
        try:
            return int(pq.read_metadata(file).num_rows)
        except pa.ArrowInvalid as error:
            raise VlpipeError(f"{file} is not a readable Parquet file: {error}") from error
    num = 1
    with open(file, "rb", buffering=0) as handle:
        for block in iter(lambda: handle.read(1 << 20), b""):
            lines = block.count(b"\n") + block.count(b"\r") - block.count(b"\r\n")
            num += max(lines, block.count(b"{")) if ending == ".json" else lines
    return num


def lines(file: Path | str) -> Iterator[tuple[str, str]]:
    """Yields (position, line without its end) of a UTF-8 file. Raises BadLine at the first line that cannot be read."""
    for where, line in text_lines(file):
        if isinstance(line, BadLine):
            raise line
        yield where, line.rstrip("\r\n")


def texts_of(value: Any, where: str, encoding: str = "utf-8") -> tuple[str, ...]:
    """Returns the texts of a value that is a text, a list of texts, or None; without empty ones. Raises BadLine."""
    values = value if isinstance(value, list) else [value]
    return tuple(text for one in values if (text := text_of(one, where, encoding)))


def text_of(value: Any, where: str, encoding: str = "utf-8") -> str:
    """Returns a text unchanged (bytes decoded), or "" for None. Raises BadLine, with `where`, if it is no text."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        return decoded(value, where, encoding)
    if not isinstance(value, str):
        shown = json.dumps(value, default=str)
        raise BadLine(f"{where}: wanted text, got {shown[:80]}", shown)
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):  # possible in JSON
        shown = json.dumps(value)
        raise BadLine(f"{where}: the text has an unpaired surrogate (half a character): {shown[:80]}", shown)
    return value
