"""Errors for the person who reads them: what was wanted, what came, where, what to do. No traceback is shown."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable


class VlpipeError(Exception):
    """Something the user can act on."""


class WorkflowError(VlpipeError):
    """A workflow file with one or more mistakes; every one is named with its line."""

    def __init__(self, path: str, problems: Iterable[tuple[int, str]]) -> None:
        self.path = path
        self.problems = sorted(set(problems))
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


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or what there is when nothing is near."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; there are: {', '.join(known)}" if known else ""


def explain(error: BaseException) -> str:
    """One clear sentence for an error that stops something."""
    if isinstance(error, VlpipeError):
        return str(error)
    if isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        what = (
            "the disk is full (or a limit on file sizes is reached)" if full else error.strerror or str(error)
        )
        return f"{what}: {error.filename}" if error.filename else what
    return f"internal error: {type(error).__name__}: {error}; --debug shows where"
