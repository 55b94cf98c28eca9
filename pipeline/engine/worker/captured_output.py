"""Captures what stages and their libraries print, log and warn, and writes it to the step's `_log/` instead of the terminal.

`sys.stdout` and `sys.stderr` are replaced while a stage runs, and `logging` handlers that write to them are redirected.
Output that C code writes to the file descriptors is not captured.
"""

from __future__ import annotations

import io
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from vlpipe.pipeline.storage.storable import ODD
from vlpipe.pipeline.storage.store import Store

if TYPE_CHECKING:
    from typing_extensions import Buffer

MAX_BYTES = 64 << 10  # per file
CUT = b"\n(truncated: the rest of the output was not kept)\n"
NAMES = ("stdout", "stderr")


class CapturedText:
    """Captures text up to `MAX_BYTES` bytes; the rest is dropped and replaced by the line `CUT`."""

    def __init__(self, append: Callable[[bytes], None]) -> None:
        self._append, self._room, self._lock = append, MAX_BYTES, threading.Lock()

    def write(self, text: str) -> None:
        with self._lock:
            if self._room <= 0 or not text:
                return
            lines = text.replace("\r", "\n")  # \r: a progress bar that redraws itself
            data = ODD.sub(lambda m: m[0].encode("unicode_escape").decode(), lines).encode()
            if len(data) > self._room:
                data = data[: self._room].decode(errors="ignore").encode() + CUT
            self._room -= len(data)
            self._append(data)


class _Bytes(io.RawIOBase):
    """Replacement for `sys.stdout.buffer`."""

    def __init__(self, text: _Switch) -> None:
        self._text = text

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer) -> int:
        self._text.write(bytes(data).decode(errors="backslashreplace"))
        return len(bytes(data))


class _Switch(io.TextIOBase):
    """Replacement for a standard stream, kept for the life of the process: loggers that a stage makes refer to it."""

    def __init__(self) -> None:
        self.behind: TextIO | None = None  # the real stream
        self.kept: CapturedText | None = None
        self.buffer = _Bytes(self)

    def write(self, text: str) -> int:
        if self.kept is not None:
            self.kept.write(text)
        elif self.behind is not None:
            self.behind.write(text)
        return len(text)

    def flush(self) -> None:
        if self.kept is None and self.behind is not None:
            self.behind.flush()

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    def fileno(self) -> int:
        if self.behind is None:
            raise OSError(
                "the process was started without this standard stream, so it has no file descriptor"
            )
        return self.behind.fileno()

    @property
    def rich_proxied_file(self) -> TextIO | None:
        """Stream on which rich draws progress bars: the driver draws them even while a stage runs in its process."""
        return getattr(self.behind, "rich_proxied_file", self.behind)


_switches = {name: _Switch() for name in NAMES}


@contextmanager
def captured(append: Callable[[bytes], None]) -> Iterator[None]:
    """Within this context, printed text is passed to `append`, at most `MAX_BYTES` bytes."""
    kept, before = CapturedText(append), {name: getattr(sys, name) for name in NAMES}
    for name, switch in _switches.items():
        if before[name] is not switch:
            switch.behind = before[name]
        setattr(sys, name, switch)
    moved = [*_follow()]
    outer = [switch.kept for switch in _switches.values()]
    try:
        for switch in _switches.values():
            switch.kept = kept
        yield
    finally:
        for switch, one in zip(_switches.values(), outer, strict=True):
            switch.kept = one
        for handler, stream in moved:
            handler.setStream(stream)
        for name, switch in _switches.items():
            if getattr(sys, name) is switch:
                setattr(sys, name, before[name])


def _follow() -> Iterator[tuple[logging.StreamHandler[Any], Any]]:
    """Redirects logging handlers of the real streams to the replacements; yields each handler with its real stream."""
    instead = {id(switch.behind): switch for switch in _switches.values() if switch.behind is not None}
    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    for logger in loggers:
        for handler in getattr(logger, "handlers", ()):
            stream = getattr(handler, "stream", None)
            if isinstance(handler, logging.StreamHandler) and id(stream) in instead:
                handler.setStream(instead[id(stream)])
                yield handler, stream


def screen() -> TextIO:
    """Returns the real standard output, for lines that must reach the terminal even while a stage runs."""
    stream = sys.stdout
    return stream.behind if isinstance(stream, _Switch) and stream.behind else stream


@contextmanager
def output_in(store: Store, rel: str) -> Iterator[None]:
    """Captures printed text in file `rel` of the root, also if the stage fails. If nothing is printed, there is no file."""
    pieces: list[bytes] = []

    def append(data: bytes) -> None:
        if store.is_local:  # immediately: the process may be killed
            path = Path(store.path(rel))
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab" if pieces else "wb") as file:
                file.write(data)
        pieces.append(data if not store.is_local else b"")

    try:
        with captured(append):
            yield
    finally:
        if pieces and not store.is_local:
            store.write_bytes(rel, b"".join(pieces))


def say_to(store: Store, folder: str) -> Callable[[str], None]:
    """Returns a function that shows the user a line: it appends to a file in the root, which the driver follows."""
    if not store.is_local:
        return partial(print, file=screen())
    path = Path(store.path(f"{folder}/_log/said.txt"))
    path.parent.mkdir(parents=True, exist_ok=True)

    def say(line: str) -> None:
        with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(line.rstrip("\n") + "\n")

    return say
