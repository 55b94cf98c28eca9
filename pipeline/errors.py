"""Errors for the person who reads them: what was wanted, what came, where, what to do. No traceback is shown."""

from __future__ import annotations

import difflib
import errno
import os
import re
import sysconfig
import traceback
from collections.abc import Iterable

MAX_PROBLEM_CHARS = 1_000
MAX_KNOWN = 40  # names listed where none is near


class VlpipeError(Exception):
    """Something the user can act on."""


class VlpipeWarning(UserWarning):
    """One sentence the user should see though all goes on; the command line prints it as it is."""


class LockLost(VlpipeError):
    """Another run has taken over the root of this one, which must stop and write nothing more."""


class WorkflowError(VlpipeError):
    """A workflow file with one or more mistakes; every one is named with its line."""

    def __init__(self, path: str, problems: Iterable[tuple[int, str]]) -> None:
        self.path = path
        self.problems = sorted({(line, one_line(text)) for line, text in problems})
        lines = [f"  line {line}: {text}" for line, text in self.problems]
        super().__init__(f"{path} has {len(lines)} problem(s):\n" + "\n".join(lines))


class SchemaError(VlpipeError):
    """A column is missing, or has another type than wanted."""


class StepFailed(VlpipeError):
    """A step could not be done; what is finished stays, and a new run goes on from there."""


class AttemptFailed(VlpipeError):
    """This try at a shard failed for no row's sake; the runner tries again, a few times."""


class RowFault(ValueError):
    """Raised by a stage for one bad row: `why` is a short code that is counted, `detail` is for the reader."""

    def __init__(self, why: str, detail: str = "") -> None:
        self.why, self.detail = why, detail
        super().__init__(f"{why}: {detail}" if detail else why)

    def __reduce__(self) -> tuple[type[RowFault], tuple[str, str]]:
        return RowFault, (self.why, self.detail)


def shown(value: object, max_chars: int = 80) -> str:
    """A value as it stands in an error's text: its repr, cut."""
    if isinstance(value, str) and len(value) > max_chars:
        return cut(repr(value[: max_chars + 1]), max_chars)
    return cut(repr(value), max_chars)


def one_line(text: str, max_chars: int = MAX_PROBLEM_CHARS) -> str:
    """A problem on one line of bearable length, without control characters, whatever a file or a stage put into it."""
    return cut(printable(re.sub(r"\s*[\r\n]\s*", " ", text[: 4 * max_chars])), max_chars)


def did_you_mean(word: str, known: Iterable[str], max_chars: int = 60) -> str:
    """`; did you mean 'x'?`, or what there is when nothing is near."""
    known = sorted(known)
    sane = [name for name in known if len(name) <= max_chars]
    near = difflib.get_close_matches(word, sane, n=1) if len(word) <= max_chars else []
    if near:
        return f"; did you mean {shown(near[0])}?"
    names = ", ".join(cut(printable(name[: max_chars + 1]), max_chars) for name in known[:MAX_KNOWN])
    more = f" and {len(known) - MAX_KNOWN:,} more" if len(known) > MAX_KNOWN else ""
    return f"; there are: {names}{more}" if known else ""


def raised_in(error: BaseException) -> str:
    """` (FILE line N)`: the last line of our code, or a user's, on the way to an error; empty if it was never raised."""
    frames = traceback.extract_tb(error.__traceback__)
    last = ([frame for frame in frames if _is_ours(frame.filename)] or frames)[-1:]
    return "".join(f" ({frame.filename} line {frame.lineno})" for frame in last)


def _is_ours(path: str) -> bool:
    if not os.path.isabs(path):  # PyArrow's own
        return False
    return "/vlpipe/" in path or not ("-packages/" in path or path.startswith(STDLIB))


STDLIB = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))
STORES = ("botocore", "aiobotocore", "s3fs", "gcsfs", "google", "azure", "adlfs", "aiohttp")


def explain(error: BaseException) -> str:
    """One clear sentence for an error that stops something: what it is about, or else which code met it."""
    if isinstance(error, VlpipeError):
        return str(error)
    if isinstance(error, OSError) and not type(error).__module__.startswith(STORES):
        return _of_the_system(error)
    if isinstance(error, MemoryError):
        return f"out of memory{raised_in(error)}"
    if isinstance(error, ImportError):
        return f"a package is missing, or broken: {error}{raised_in(error)}"
    name = type(error).__name__
    said = f"{name}: {one_line(str(error))}" if str(error) else name
    if type(error).__module__.startswith(STORES):
        return f"the object store says: {said}"
    return f"internal error: {said}{raised_in(error)}; --debug shows where"


def _of_the_system(error: OSError) -> str:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    what = error.strerror or f"{type(error).__name__}: {error}".removeprefix("OSError: ")
    what = "the disk is full (or a limit on file sizes is reached)" if full else what
    files = [str(name) for name in (error.filename, error.filename2) if name is not None]
    return f"{what}: {' -> '.join(files)}" if files else f"{what}{raised_in(error)}"


def printable(text: str) -> str:
    """Text from anywhere; an escape sequence in it must not reach the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)


def cut(text: str, max_chars: int) -> str:
    return text if len(text) <= max_chars else text[: max_chars - 3] + "..."
