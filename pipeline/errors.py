"""Error classes, and helpers for error texts. A text contains what was expected, what came, where, and what to do.

The command line prints the text without a traceback.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import sysconfig
import traceback
from collections.abc import Iterable
from typing import Self

MAX_PROBLEM_CHARS = 1_000
MAX_KNOWN = 40  # max known names listed when none is similar to the unknown one


class VlpipeError(Exception):
    """An error the user can act on; base of all errors raised on purpose.

    settings: (parameter, value) of the stage's parameters that would avoid it; the plan shows them as `--set` options.
    """

    settings: tuple[tuple[str, str], ...] = ()

    def with_settings(self, *settings: tuple[str, str]) -> Self:
        """Returns the error itself, with its `settings` set."""
        self.settings = settings
        return self


class VlpipeWarning(UserWarning):
    """A one-sentence warning for the user. The run continues; the command line prints the text unchanged."""


class LockLost(VlpipeError):
    """Another run has taken over this run's root (the folder or URL of its results). This run must stop writing."""


class WorkflowError(VlpipeError):
    """A workflow file has mistakes. `problems` lists all of them as sorted (line, text) pairs."""

    def __init__(self, path: str, problems: Iterable[tuple[int, str]]) -> None:
        self.path = path
        self.problems = sorted({(line, one_line(text)) for line, text in problems})
        # problems of --set and --profile have no line
        lines = [f"  line {line}: {text}" if line else f"  {text}" for line, text in self.problems]
        super().__init__(f"{path} has {len(lines)} problem(s):\n" + "\n".join(lines))


class SchemaError(VlpipeError):
    """A column is missing, or its type is not the one that a stage declares or reads."""


class StepFailed(VlpipeError):
    """A step failed. Finished shards are kept, and the next run continues from them."""


class AttemptFailed(VlpipeError):
    """An attempt at a shard failed for a reason unrelated to its rows. The runner retries the shard a few times."""


class RowFault(ValueError):
    """Raised by a stage for one bad row. why: short reject code, such as `http_404`; detail: free text for the user."""

    def __init__(self, why: str, detail: str = "") -> None:
        self.why, self.detail = why, detail
        super().__init__(f"{why}: {detail}" if detail else why)

    def __reduce__(self) -> tuple[type[RowFault], tuple[str, str]]:
        return RowFault, (self.why, self.detail)


def shown(value: object, max_chars: int = 80) -> str:
    """Returns the repr of a value for an error text, cut to `max_chars` characters."""
    if isinstance(value, str) and len(value) > max_chars:
        return cut(repr(value[: max_chars + 1]), max_chars)
    return cut(repr(value), max_chars)


def one_line(text: str, max_chars: int = MAX_PROBLEM_CHARS) -> str:
    """Returns `text` on one line, without control characters, cut to `max_chars` characters."""
    return cut(printable(re.sub(r"\s*[\r\n]\s*", " ", text[: 4 * max_chars])), max_chars)


def did_you_mean(word: str, known: Iterable[str], max_chars: int = 60) -> str:
    """Returns `; did you mean 'x'?`; `; there are: ...` if no known name is similar; empty if there are no known names.

    max_chars: longer names are not compared, and are cut in the list.
    """
    known = sorted(known)
    short = [name for name in known if len(name) <= max_chars]
    near = difflib.get_close_matches(word, short, n=1) if len(word) <= max_chars else []
    if near:
        return f"; did you mean {shown(near[0])}?"
    names = ", ".join(cut(printable(name[: max_chars + 1]), max_chars) for name in known[:MAX_KNOWN])
    more = f" and {len(known) - MAX_KNOWN:,} more" if len(known) > MAX_KNOWN else ""
    return f"; there are: {names}{more}" if known else ""


def raised_in(error: BaseException) -> str:
    """Returns ` (FILE line N)` for the innermost traceback frame in vlpipe or user code; empty if there is no traceback.

    If all frames are in libraries, the innermost of them is used.
    """
    frames = traceback.extract_tb(error.__traceback__)
    last = ([frame for frame in frames if _is_ours(frame.filename)] or frames)[-1:]
    return "".join(f" ({frame.filename} line {frame.lineno})" for frame in last)


def _is_ours(path: str) -> bool:
    if not os.path.isabs(path):  # frames of PyArrow's compiled code have relative paths
        return False
    return "/vlpipe/" in path or not ("-packages/" in path or path.startswith(STDLIB))


STDLIB = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))
STORES = ("botocore", "aiobotocore", "s3fs", "gcsfs", "google", "azure", "adlfs", "aiohttp")


def explain(error: BaseException) -> str:
    """Returns one sentence for an error that stops a command; for unexpected errors it names the line of code."""
    if isinstance(error, VlpipeError):
        return str(error)
    if isinstance(error, OSError) and not type(error).__module__.startswith(STORES):
        return _os_error_text(error)
    if isinstance(error, MemoryError):
        return f"out of memory{raised_in(error)}"
    if isinstance(error, ImportError):
        return f"a package is missing, or broken: {error}{raised_in(error)}"
    name = type(error).__name__
    text = f"{name}: {one_line(str(error))}" if str(error) else name
    if type(error).__module__.startswith(STORES):
        return f"the object store returned an error: {text}"
    return f"internal error: {text}{raised_in(error)}; --debug shows the traceback"


def _os_error_text(error: OSError) -> str:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    what = error.strerror or f"{type(error).__name__}: {error}".removeprefix("OSError: ")
    what = "the disk is full (or a limit on file sizes is reached)" if full else what
    files = [str(name) for name in (error.filename, error.filename2) if name is not None]
    return f"{what}: {' -> '.join(files)}" if files else f"{what}{raised_in(error)}"


def printable(text: str) -> str:
    """Returns `text` with non-printable characters escaped, so that no escape sequence reaches the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)


def cut(text: str, max_chars: int) -> str:
    """Returns `text`, cut to `max_chars` characters including a final `...` if it is longer."""
    return text if len(text) <= max_chars else text[: max_chars - 3] + "..."
