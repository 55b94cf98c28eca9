"""While bars are drawn, the terminal is theirs: what else is written to it, by C libraries and child processes too, is
caught, and its lines are printed above the bars.

Files, not pipes: a library that writes while it holds Python's lock would wait for ever for a thread that reads a pipe.
"""

from __future__ import annotations

import os
import sys
import tempfile
from typing import IO

from rich.console import Console
from rich.text import Text

from vlpipe.pipeline.errors import cut, printable

MAX_LINES = 200  # different ones
MAX_CHARS = 500
MAX_BYTES = 1 << 20  # of what is read already and kept in the file


class Screen:
    """Nothing happens unless `console` writes to the process's own terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._before: IO[str] | None = None
        self._saved: list[int] = []
        self._caught: IO[bytes] | None = None
        self._read_bytes = 0
        self._rest = ""
        self._seen: set[str] = set()
        self._num_left_out = 0

    def __enter__(self) -> Screen:
        if _is_own_terminal(self.console):
            self._flush()
            self._caught = tempfile.TemporaryFile(buffering=0)
            self._saved = [os.dup(1), os.dup(2)]
            self._before = self.console.file
            encoding = getattr(sys.stdout, "encoding", None)
            self.console.file = open(os.dup(1), "w", encoding=encoding, errors="backslashreplace")
            for fd in (1, 2):
                os.dup2(self._caught.fileno(), fd)
            sys.breakpointhook = self._debugger
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Give the terminal back; what was caught and not yet shown is shown."""
        if self._caught is None or self._before is None:
            return
        self._flush()
        self.show()
        if self._rest:
            self._line(self._rest)
        for fd, saved in zip((1, 2), self._saved, strict=True):
            os.dup2(saved, fd)
            os.close(saved)
        sys.breakpointhook = sys.__breakpointhook__
        mine, self.console.file = self.console.file, self._before
        mine.close()
        self._caught.close()
        self._caught = None
        if self._num_left_out:
            self.console.print(
                f"[dim]... and {self._num_left_out:,} more lines of output[/dim]", highlight=False
            )

    def show(self) -> None:
        """Print what was caught since the last time."""
        if self._caught is None:
            return
        data = os.pread(self._caught.fileno(), MAX_BYTES, self._read_bytes)
        self._read_bytes += len(data)
        if self._read_bytes >= MAX_BYTES:  # what is written just now may be lost with it
            os.ftruncate(self._caught.fileno(), 0)
            os.lseek(self._caught.fileno(), 0, os.SEEK_SET)
            self._read_bytes = 0
        *lines, self._rest = (self._rest + data.decode(errors="replace")).split("\n")
        self._rest = self._rest[-MAX_CHARS:]
        for line in lines:
            self._line(line)

    def _line(self, text: str) -> None:
        text = cut(printable(text.rstrip("\r").rpartition("\r")[2].strip("\0")), MAX_CHARS)
        if not text.strip() or text in self._seen:
            self._num_left_out += bool(text.strip())
        elif len(self._seen) >= MAX_LINES:
            self._num_left_out += 1
        else:
            self._seen.add(text)
            self.console.print(Text(text, style="dim"), soft_wrap=True)

    def _debugger(self, *args: object, **options: object) -> object:
        self.release()
        return sys.__breakpointhook__(*args, **options)

    @staticmethod
    def _flush() -> None:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()


def _is_own_terminal(console: Console) -> bool:
    try:
        return console.is_terminal and console.file.fileno() == 1 and os.isatty(1)
    except (OSError, ValueError, AttributeError):  # a buffer
        return False
