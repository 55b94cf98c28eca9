"""The entries of one huge JSON object, one after the other, in little memory.

Python's `json` writes NaN, which is not JSON: ijson 3.6 refuses it (both its backends), so a file of eight gigabytes would
end at the first of them. Here `json`'s own scanner reads value after value out of a window that is refilled.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import IO, Any

from vlpipe.pipeline.errors import VlpipeError

CHUNK_BYTES = 1 << 22
MAX_VALUE_CHARS = 1 << 28  # one value; HowTo100M's longest video has some hundred kilobytes
SPACE = " \t\n\r"
AFTER = frozenset(
    ',:}"[{' + SPACE
)  # what may stand after a value, and what is wrong there but no part of a number


def entries(handle: IO[bytes], name: str, chunk_bytes: int = CHUNK_BYTES) -> Iterator[tuple[str, Any]]:
    """(key, value) in order of the file, repeated keys included. VlpipeError: no object, broken, cut off, no UTF-8."""
    window = _Window(handle, name, chunk_bytes)
    window.need("{")
    if window.take("}"):
        return
    last = ""
    while True:
        key = window.value(last)
        if not isinstance(key, str):
            raise window.broken(f"after {last!r} wanted a key in quotes, got {str(key)[:40]}")
        window.need(":")
        last, value = key, window.value(key)
        yield key, value
        if window.take("}"):
            return window.end()
        window.need(",")


class _Window:
    """The part of the file that is in memory."""

    def __init__(self, handle: IO[bytes], name: str, chunk_bytes: int) -> None:
        self._handle, self._name, self._chunk_bytes = handle, name, chunk_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._scan = json.JSONDecoder().raw_decode
        self._text, self._at, self._before, self._ended = "", 0, 0, False

    def broken(self, said: str) -> VlpipeError:
        return VlpipeError(
            f"{self._name} is no whole JSON object: {said} (character {self._before + self._at})"
        )

    def need(self, char: str) -> None:
        if not self.take(char):
            got = self._text[self._at : self._at + 20]
            raise self.broken(f"wanted {char!r}, got {got!r}" if got else f"it ends where {char!r} is wanted")

    def take(self, char: str) -> bool:
        """Step over the next character that is no space, if it is this one."""
        self._skip_space()
        found = self._text[self._at : self._at + 1] == char
        self._at += found
        return found

    def end(self) -> None:
        self._skip_space()
        if self._at < len(self._text):
            raise self.broken(f"after its end comes {self._text[self._at : self._at + 20]!r}")

    def value(self, where: str) -> Any:
        """The next value; a number is whole when what follows it cannot be part of one."""
        self._skip_space()
        size = self._chunk_bytes
        while True:
            try:
                found, end = self._scan(self._text, self._at)
                if self._ended or (end < len(self._text) and self._text[end] in AFTER):
                    self._at = end
                    return found
            except ValueError as error:
                if self._ended:
                    raise self.broken(f"the value at {where!r} cannot be read: {error}") from error
            except RecursionError as error:
                raise self.broken(f"the value at {where!r} is nested too deep") from error
            if len(self._text) - self._at > MAX_VALUE_CHARS:
                raise self.broken(f"the value at {where!r} has more than {MAX_VALUE_CHARS} characters")
            self._fill(size)
            size *= 2  # a long value is not scanned again and again

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
