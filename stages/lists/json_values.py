"""Parses JSON strictly: repeated keys are not lost, numbers stay as written, NaN is null; reads long arrays as a stream."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from vlpipe.pipeline.errors import VlpipeError, shown
from vlpipe.pipeline.storage.text_lines import MAX_LINE_BYTES, text_file

CHUNK_CHARS = 1 << 20
MAX_FILE_BYTES = (
    1 << 30
)  # of `load_json`, which takes up to ten times as much memory; COCO's largest file has 450 MB
SPACE = " \t\n\r"
DIGITS = re.compile(r"-?[0-9]{1,19}")
OPENS_ARRAY = re.compile(r'\s*\{\s*"[^"\\]*"\s*:\s*\[')


class Repeated(dict[str, Any]):
    """A JSON object in which a key occurs more than once; its value is the last one.

    keys_as_written: all keys in file order, with the repeats.
    """

    keys_as_written: list[str]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    repeated = Repeated(found)
    repeated.keys_as_written = [key for key, _ in pairs]
    return repeated


def _constant(name: str) -> float | None:
    return None if name == "NaN" else float(name)  # Infinity is no text, and is refused as such


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=str, parse_float=str, parse_constant=_constant
)


def parse_json(text: str) -> Any:
    """Returns a JSON value: numbers as strings, NaN as None, an object with repeated keys as Repeated.

    Raises ValueError if it is not JSON, RecursionError if it is nested too deeply.
    """
    return _DECODER.decode(text)


def need_no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns a dict of the pairs, for `object_pairs_hook` of json. Raises ValueError if a key occurs more than once."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in found if keys.count(key) > 1)
        raise ValueError(f"an object has the key {shown(twice)} {keys.count(twice)} times")
    return found


def load_json(path: str | Path) -> Any:
    """Returns the content of a JSON file in UTF-8, UTF-16 or UTF-32, with or without a byte-order mark.

    Raises VlpipeError if there is no such file, it has more than MAX_FILE_BYTES, it is not JSON, or an object has a key more
    than once.
    """
    try:
        size = Path(path).stat().st_size
        if size > MAX_FILE_BYTES:
            raise VlpipeError(
                f"{path} has {size:,} bytes, and a file of annotations is loaded whole, up to {MAX_FILE_BYTES:,}; split it, "
                "or write a line of JSON for each image, which lists.captions:CaptionsJsonl reads one by one"
            )
        data = Path(path).read_bytes()
        return json.loads(data.decode(json.detect_encoding(data)), object_pairs_hook=need_no_repeats)
    except FileNotFoundError as error:
        raise VlpipeError(f"there is no file {path}") from error
    except UnicodeDecodeError as error:
        raise VlpipeError(
            f"{path} is not JSON: it is not text in UTF-8, UTF-16 or UTF-32 ({error})"
        ) from error
    except ValueError as error:
        raise VlpipeError(f"{path} is not valid JSON: {error}") from error
    except RecursionError as error:
        raise VlpipeError(f"{path} cannot be read: its JSON is nested too deeply") from error


def id_of(value: Any) -> str:
    """Returns an id as text. 7.0 is 7: tables with an empty cell in the column write it so."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def whole_number(record: Any, key: str, where: str) -> int:
    """Returns record[key], a number without fraction or its digits. Raises VlpipeError, with `where`, for anything else."""
    value = record.get(key) if isinstance(record, dict) else None
    if isinstance(value, float) and value.is_integer():  # as tables that had an empty cell are written
        value = int(value)
    if isinstance(value, str) and DIGITS.fullmatch(value.strip()):
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63:
        return value
    raise VlpipeError(f"{where}: wanted a whole number as {key!r}, got {shown(value)}")


def number_or_name(record: Any, key: str, where: str) -> int | str:
    """Returns record[key], a whole number as `whole_number` reads it, or a text that is not blank. Raises VlpipeError, with
    `where`, for anything else."""
    value = record.get(key) if isinstance(record, dict) else None
    if isinstance(value, str) and value.strip() and not DIGITS.fullmatch(value.strip()):
        return value
    try:
        return whole_number(record, key, where)
    except VlpipeError as error:
        raise VlpipeError(
            f"{where}: wanted a whole number or a name as {key!r}, got {shown(value)}"
        ) from error


def array_items(path: Path, encoding: str = "utf-8") -> Iterator[tuple[str, Any]] | None:
    """Returns an iterator of (position, item) over the JSON array in a file, one at a time, parsed as by `parse_json`.

    Returns None if the file does not begin with `[`. Raises VlpipeError if the array is broken or truncated,
    or an item has more than about MAX_LINE_BYTES characters; memory holds one item.
    """
    with text_file(path, encoding) as handle:
        window = _Window(handle, str(path))
        if window.next_char() != "[":
            return None
    return _items(path, encoding)


def is_by_columns(path: Path, encoding: str = "utf-8") -> bool:
    """Returns whether a file is one object of arrays and not JSON lines: its only line is an object with nothing but arrays,
    or the object goes on behind its first line, which opens it, or its first array."""
    try:
        with text_file(path, encoding) as handle:
            line = handle.readline(CHUNK_CHARS)
            while line and not line.strip():
                line = handle.readline(CHUNK_CHARS)
            rest = handle.read(CHUNK_CHARS)
    except UnicodeDecodeError:  # the reader of lines names the line
        return False
    try:
        found = parse_json(line) if len(line) < CHUNK_CHARS else None
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict):
        return not rest.strip() and bool(found) and all(isinstance(value, list) for value in found.values())
    return line.strip() == "{" or bool(OPENS_ARRAY.match(line))


def _items(path: Path, encoding: str) -> Iterator[tuple[str, Any]]:
    with text_file(path, encoding) as handle:
        window = _Window(handle, str(path))
        window.take("[")
        number = 0
        if not window.take("]"):
            while True:
                number += 1
                where = f"{path} item {number}"
                yield where, window.value(where)
                if window.take("]"):
                    break
                if not window.take(","):
                    raise VlpipeError(
                        f"{where} must be followed by ',' or ']', but is followed by {window.rest()}"
                    )
        if window.next_char():
            raise VlpipeError(
                f"{path}: nothing may follow the JSON array, but it is followed by {window.rest()}"
            )


class _Window:
    """A JSON file read from start to end: the part that is in memory, and the position of the next character in it."""

    def __init__(self, handle: IO[str], name: str) -> None:
        self._handle, self._name = handle, name
        self._text, self._at, self._ended = "", 0, False

    def next_char(self) -> str:
        """Returns the next character that is not whitespace; empty at the end of the file."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in SPACE:
                self._at += 1
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._fill(CHUNK_CHARS)

    def take(self, char: str) -> bool:
        """Skips the next character if it is `char`; returns whether it is."""
        found = self.next_char() == char
        self._at += found
        return found

    def rest(self) -> str:
        return shown(self._text[self._at : self._at + 40]) if self.next_char() else "the end of the file"

    def value(self, where: str) -> Any:
        """Returns the next value. Raises VlpipeError, with `where`, if it is invalid, truncated, too deep or too long."""
        self.next_char()
        size = CHUNK_CHARS
        while True:
            try:
                found, end = _DECODER.raw_decode(self._text, self._at)
                if self._ended or end < len(self._text):  # else a number may go on
                    self._at = end
                    return found
            except ValueError as error:
                if self._ended:
                    raise VlpipeError(
                        f"{where} is not valid JSON, or the file is truncated: {error}"
                    ) from error
            except RecursionError as error:
                raise VlpipeError(f"{where} cannot be read: its JSON is nested too deeply") from error
            if len(self._text) - self._at > MAX_LINE_BYTES:
                raise VlpipeError(
                    f"{where} is not valid JSON, or longer than {MAX_LINE_BYTES:,} characters; it begins with {self.rest()}"
                )
            self._fill(size)
            size *= 2  # bounds the number of times that a long item is scanned

    def _fill(self, num_chars: int) -> None:
        try:
            more = self._handle.read(num_chars)
        except UnicodeDecodeError as error:
            raise VlpipeError(f"{self._name} is not {error.encoding.upper()}: {error.reason}") from error
        self._ended = not more
        self._text, self._at = self._text[self._at :] + more, 0
