"""A problem that `verify` reports: a file, the kind of problem, and an explanation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError, cut, printable

T = TypeVar("T")
Kind = Literal[
    "missing", "damaged", "out of date", "repeated", "mixed code", "left over", "unfinished", "made anew"
]
HARMLESS = ("mixed code", "left over", "unfinished", "made anew")
# Exceptions that reading a damaged file may raise: not JSON, JSON with other fields, corrupt Parquet.
BROKEN = (
    VlpipeError,
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RecursionError,
    pa.ArrowException,
)


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem with a file or folder. path: relative to the root; text: explanation.

    Errors: `missing`, `damaged`, `repeated` (an id occurs more than once), `out of date` (its inputs have changed since).
    Notices: `mixed code` (shards of one step were made by different code), `left over` (a temporary file, or a file without
    a receipt), `unfinished` (the next run continues it), `made anew` (a damaged cache, which the next run rewrites).
    """

    path: str
    kind: Kind
    text: str = ""

    @property
    def is_wrong(self) -> bool:
        return self.kind not in HARMLESS


def read_or_problem(path: str, read: Callable[[], T], kind: Kind = "damaged") -> T | Problem:
    """Returns `read()`, or a Problem if it raises: `missing` for FileNotFoundError, `kind` for other errors in BROKEN."""
    try:
        return read()
    except FileNotFoundError:
        return Problem(path, "missing")
    except BROKEN as error:
        said = str(error) if isinstance(error, VlpipeError) else f"{type(error).__name__}: {error}"
        return Problem(path, kind, cut(printable(" ".join(said.split())), 300))
