"""Captures the output of everything else while progress bars are drawn, including C libraries and child processes, and
prints it above the bars.

Output goes to a file and not a pipe: a library that writes to a full pipe while it holds the GIL would deadlock, because
the thread that reads the pipe needs the GIL.
"""

from __future__ import annotations

import os
import sys
import tempfile
from typing import IO

from rich.console import Console
from rich.text import Text

from vlpipe.pipeline.errors import cut, printable

MAX_LINES = 200  # max number of different lines printed
MAX_CHARS = 500  # max length of a line
MAX_BYTES = 1 << 20  # the file is truncated once this much of it is read


class Screen:
    """Context manager that captures file descriptors 1 and 2. No effect unless `console` is the process's own terminal."""

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
        """Restores the terminal, after printing captured output that is not yet shown."""
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
        """Prints the output captured since the last call."""
        if self._caught is None:
            return
        data = os.pread(self._caught.fileno(), MAX_BYTES, self._read_bytes)
        self._read_bytes += len(data)
        if self._read_bytes >= MAX_BYTES:  # output written during the truncation may be lost
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
    except (OSError, ValueError, AttributeError):  # the console writes to a buffer
        return False
