"""Reads the entries of a huge JSON object one by one, in little memory.

HowTo100M's files contain NaN, which Python's `json` writes although it is not valid JSON; ijson 3.6 (both backends) stops
at the first one. Here, the decoder of `json` reads value after value from a window: the current part of the file.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import IO, Any

from vlpipe.pipeline.errors import VlpipeError

CHUNK_BYTES = 1 << 22
MAX_VALUE_CHARS = 1 << 28  # per value; the captions of HowTo100M's longest video are a few hundred kilobytes
SPACE = " \t\n\r"
AFTER = frozenset(
    ',:}"[{' + SPACE
)  # characters that cannot be part of a number: a value followed by one of them is complete


def entries(handle: IO[bytes], name: str, chunk_bytes: int = CHUNK_BYTES) -> Iterator[tuple[str, Any]]:
    """Yields (key, value) of a JSON object in file order, including repeated keys. name: of the file, for error texts.

    Raises VlpipeError if the file is not a JSON object, broken, truncated, or not UTF-8.
    """
    window = _Window(handle, name, chunk_bytes)
    window.need("{")
    if window.take("}"):
        return window.end()
    what = "the first key"
    while True:
        key = window.value(what)
        if not isinstance(key, str):
            raise window.broken(f"{what} must be a string, but is {json.dumps(key)[:40]}")
        window.need(":")
        yield key, window.value(f"the value of {key[:80]!r}")
        if window.take("}"):
            return window.end()
        window.need(",")
        what = f"the key after {key[:80]!r}"


class _Window:
    """The part of the file that is in memory, and the position of the next character to read."""

    def __init__(self, handle: IO[bytes], name: str, chunk_bytes: int) -> None:
        self._handle, self._name, self._chunk_bytes = handle, name, chunk_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._scan = json.JSONDecoder().raw_decode
        self._text, self._at, self._before, self._ended = "", 0, 0, False

    def broken(self, detail: str, at: int | None = None) -> VlpipeError:
        """Returns an error that names the file and the position. at: in the window; None: of the next character."""
        place = self._before + (self._at if at is None else at)
        return VlpipeError(f"{self._name} is not a complete JSON object: {detail} (character {place})")

    def need(self, char: str) -> None:
        """Skips the next character after whitespace. Raises VlpipeError if it is not `char`."""
        if not self.take(char):
            got = self._text[self._at : self._at + 20]
            raise self.broken(f"wanted {char!r}, got {got!r}" if got else f"it ends where {char!r} is wanted")

    def take(self, char: str) -> bool:
        """Skips the next character after whitespace if it is `char`; returns whether it is."""
        self._skip_space()
        found = self._text[self._at : self._at + 1] == char
        self._at += found
        return found

    def end(self) -> None:
        """Raises VlpipeError if anything but whitespace follows."""
        self._skip_space()
        if self._at < len(self._text):
            raise self.broken(f"the object is followed by {self._text[self._at : self._at + 20]!r}")

    def value(self, what: str) -> Any:
        """Returns the next value, or key. what: what it is, for error texts, such as `the value of 'a'`.

        It is complete if the character after it cannot be part of a number, or at the end of the file. Raises VlpipeError if
        it is invalid, nested too deeply, or longer than MAX_VALUE_CHARS.
        """
        self._skip_space()
        size = self._chunk_bytes
        while True:
            try:
                found, end = self._scan(self._text, self._at)
                if self._ended or (end < len(self._text) and self._text[end] in AFTER):
                    self._at = end
                    return found
            except json.JSONDecodeError as error:
                if self._ended:
                    raise self.broken(f"{what} cannot be read: {error.msg}", error.pos) from error
            except ValueError as error:  # a number of too many digits
                if self._ended:
                    raise self.broken(f"{what} cannot be read: {error}") from error
            except RecursionError as error:
                raise self.broken(f"{what} is nested too deeply") from error
            if len(self._text) - self._at > MAX_VALUE_CHARS:
                raise self.broken(f"{what} has more than {MAX_VALUE_CHARS:,} characters")
            self._fill(size)
            size *= 2  # bounds the number of scans of a long value

    def _skip_space(self) -> None:
        while True:
            while self._at < len(self._text) and self._text[self._at] in SPACE:
                self._at += 1
            if self._at < len(self._text) or self._ended:
                return
            self._fill(self._chunk_bytes)

    def _fill(self, num_bytes: int) -> None:
        data = self._handle.read(num_bytes)
        self._ended = not data
        self._before += self._at
        try:
            self._text = self._text[self._at :] + self._decoder.decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            raise self.broken(f"it is not UTF-8: {error.reason}") from error
        self._at = 0
