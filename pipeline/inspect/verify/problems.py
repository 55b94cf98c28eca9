"""What `verify` finds: one file, what is wrong with it, and why."""

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
# What reading a damaged file raises: JSON of another shape, Parquet of other bytes.
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
    """`missing`, `damaged`, `repeated` (an id that must be unique), and `out of date` (made from other bytes than now lie
    there) are wrong. The others are told: `mixed code` (shards by two versions of the stage), `left over` (no receipt
    speaks of it), `unfinished` (a step that goes on with the next run), `made anew` (a damaged file that only saves time).
    """

    path: str
    kind: Kind
    text: str = ""

    @property
    def is_wrong(self) -> bool:
        return self.kind not in HARMLESS


def read_or_problem(path: str, read: Callable[[], T], kind: Kind = "damaged") -> T | Problem:
    """What `read` returns of a file; when it cannot, what is wrong with the file."""
    try:
        return read()
    except FileNotFoundError:
        return Problem(path, "missing")
    except BROKEN as error:
        said = str(error) if isinstance(error, VlpipeError) else f"{type(error).__name__}: {error}"
        return Problem(path, kind, cut(printable(" ".join(said.split())), 300))
