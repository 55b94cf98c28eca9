"""Run a stage's function on a batch and find the rows that break it: only a row that fails alone is blamed.

A batch that fails is halved. Once more than `Faults.budget` rows of the shard are blamed, halving costs more than it
saves, and failing batches are run row by row: no good row is lost with its neighbours, and a batch of n rows costs at
most 3n calls. Whether a step has too many faults is a question about all its rows, which the runner decides; a shard ends
the step early only when its own faults exceed the allowance of all rows (`Faults.most`), or when nothing but faults has
come out of the step and that many times (`Faults.hopeless`).
Faults of the machine (memory, disk, a missing package) are nobody's row: they fail the attempt and reach the runner.
"""

from __future__ import annotations

import errno
import sys
import sysconfig
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import pyarrow as pa

from vlpipe.pipeline.errors import AttemptFailed, RowFault, SchemaError, StepFailed, VlpipeError
from vlpipe.pipeline.shard import Out, Reject
from vlpipe.pipeline.stage import Work
from vlpipe.pipeline.storage.storable import storable

NOBODYS_ERRNO = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.EROFS,
}
MAX_CODE, MAX_DETAIL = 100, 500  # characters of a reject
MAX_TRACEBACKS, MAX_TRACEBACK = 20, 8_000  # kept per shard, and characters of one
HALF_SHAPED = 10  # rows without the declared columns, and none with them: the stage's mistake, not the rows'
HOPELESS = (
    1_000,
    10_000,
)  # faults, and nothing else: at least and at most so many before the stage is taken for broken


class ChildDied(Exception):
    """The isolated process that ran the function died."""


class DeadlinePassed(Exception):
    """The isolated process that ran the function took too long, and was ended."""


class MissingColumns(Exception):
    """What a stage returned for some rows is no table of the declared columns."""


@dataclass(frozen=True, slots=True)
class Fault:
    """An exception as a reject tells it. traceback: empty where the stage itself named the code."""

    why: str
    detail: str
    traceback: str = ""


class ChildRaised(Exception):
    """The function raised in the isolated process."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        super().__init__(fault.why, fault.detail)


def is_nobodys(error: BaseException) -> bool:
    """True for a fault of the machine or of the set-up, which says nothing about a row."""
    if isinstance(error, (MemoryError, ImportError, VlpipeError)):
        return True
    if isinstance(error, OSError) and error.errno in NOBODYS_ERRNO:
        return True
    return "OutOfMemory" in type(error).__name__ or "CUDA error" in storable(error)


def is_raised(error: BaseException) -> bool:
    """False for what ends a process from outside. A panic of a Rust library and `sys.exit` in a stage are its faults."""
    if isinstance(error, Exception) or type(error).__name__ == "PanicException":
        return True
    frames = list(traceback.walk_tb(error.__traceback__))
    last = frames[-1][0].f_globals.get("__name__", "") if frames else ""
    return isinstance(error, SystemExit) and not last.startswith(("ray.", "vlpipe.pipeline."))


def fault_of(error: BaseException, home: str = "") -> Fault:
    """home: the module the stage is defined in."""
    if isinstance(error, ChildRaised):
        return error.fault
    if isinstance(error, ChildDied):
        return Fault("killed_worker", storable(error, MAX_DETAIL))
    if isinstance(error, DeadlinePassed):
        return Fault("deadline", storable(error, MAX_DETAIL))
    if isinstance(error, MissingColumns):
        return Fault("missing_columns", storable(error, MAX_DETAIL))
    if isinstance(error, RowFault):
        return Fault(storable(error.why, MAX_CODE), storable(error.detail, MAX_DETAIL))
    where = line_of(error.__traceback__, home)
    said = storable(error, MAX_DETAIL - len(where))
    whole = "".join(traceback.format_exception(error, limit=-30))
    return Fault(
        storable(f"error_{type(error).__name__}", MAX_CODE), f"{said}{where}", storable(whole, MAX_TRACEBACK)
    )


def row_fault(error: Exception, home: str) -> RowFault:
    """For stages that talk to the world: an exception they did not expect, as the fault of the row it came with.

    One of the machine is raised again. The traceback is printed: it ends up in the shard's log.
    """
    if isinstance(error, RowFault):
        return error
    if is_nobodys(error):
        raise error
    fault = fault_of(error, home)
    print(fault.traceback, file=sys.stderr)
    return RowFault(fault.why, fault.detail)


def line_of(at: TracebackType | None, home: str = "") -> str:
    """` (file.py:12)`: the innermost line of the stage's code, not of a library it calls; "" when there is none."""
    frames = [
        (frame.f_globals.get("__name__", ""), frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(at)
    ]
    own = [f for f in frames if home and f[0].partition(".")[0] == home.partition(".")[0]] or [
        f for f in frames if not _is_library(f[1])
    ]
    own = [f for f in own if not f[0].startswith("vlpipe.pipeline.")]
    return f" ({own[-1][1].replace(chr(92), '/').rpartition('/')[2]}:{own[-1][2]})" if own else ""


def _is_library(file: str) -> bool:
    places = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return file.startswith("<") or any(file.startswith(place) for place in places)


@dataclass
class Faults:
    """Rows blamed in this shard, by reason.

    budget: above it failing batches are no longer halved. most: what `max_reject_rate` allows of all rows of the step;
    None when it is not known yet. hopeless: so many faults and nothing else show that the stage is broken; None when
    rows of other shards went well. home: the stage's module.
    """

    step: str
    budget: int
    most: int | None = None
    hopeless: int | None = None
    home: str = ""
    found: Counter[str] = field(default_factory=Counter)
    num_good: int = 0  # rows that did not fail
    tracebacks: dict[str, str] = field(default_factory=dict)  # the first of each code

    @property
    def over_budget(self) -> bool:
        return self.found.total() > self.budget

    def blame(self, row_id: str, error: BaseException) -> Reject:
        """The row's reject. StepFailed, SchemaError: the step cannot succeed any more."""
        fault = fault_of(error, self.home)
        short = fault.detail[:120]
        self.found[f"{fault.why} ({short})" if short else fault.why] += 1
        if fault.traceback and len(self.tracebacks) < MAX_TRACEBACKS:
            self.tracebacks.setdefault(fault.why, fault.traceback)
        num = self.found.total()
        if isinstance(error, MissingColumns) and self.hopeless and not self.num_good and num >= HALF_SHAPED:
            raise SchemaError(str(error))
        if self.most is not None and num > max(self.budget, self.most):
            raise StepFailed(
                f"{self.step}: more than {max(self.budget, self.most):,} rows of one shard failed; {worst(self.found)}. "
                "max_reject_rate allows no more of all the step's rows"
            )
        if self.hopeless and not self.num_good and num >= self.hopeless:
            raise StepFailed(f"{self.step}: all of the first {num:,} rows failed; {worst(self.found)}")
        return Reject(row_id, "fault", fault.why, fault.detail)


def worst(reasons: Counter[str], num: int = 3) -> str:
    return "worst reasons: " + ", ".join(f"{why} x {n}" for why, n in reasons.most_common(num))


def hopeless_at(num_allowed: float) -> int:
    """Faults without one good row after which a stage is taken for broken. num_allowed: of all rows of the step."""
    least, most = HOPELESS
    return max(least, min(int(num_allowed) + 1, most))


Settle = Callable[[Any, int], Out]


def run_guarded(
    work: Work,
    batch: pa.Table,
    faults: Faults,
    *,
    settle: Settle | None = None,
    once: bool = False,
    alone_before: bool = False,
) -> Iterator[Out]:
    """Yield the outputs for a batch, in row order, with the rows that fail alone turned into rejects.

    settle: makes what the function returned for so many rows what the stage declared, and counts the good ones; what it
    raises counts like the function's own. once: the stage talks to the world, and no row is run again: AttemptFailed in
    place of halving.
    """
    try:
        out = _settled(work(batch), batch.num_rows, settle, faults)
    except BaseException as error:
        if is_nobodys(error) or not is_raised(error):
            raise
        if once and batch.num_rows > 1:
            raise _not_again(fault_of(error, faults.home), batch.num_rows) from error
        failed = error
    else:
        yield out
        return
    if batch.num_rows > 1:
        size = 1 if faults.over_budget else (batch.num_rows + 1) // 2
        for start in range(0, batch.num_rows, size):
            yield from run_guarded(work, batch.slice(start, size), faults, settle=settle)
    elif not alone_before and not once:  # a fault that passes is not the row's
        yield from run_guarded(work, batch, faults, settle=settle, alone_before=True)
    else:
        yield Out(batch.slice(0, 0), [faults.blame(batch["id"][0].as_py(), failed)])


def _settled(result: Any, num_rows: int, settle: Settle | None, faults: Faults) -> Out:
    if settle:
        return settle(result, num_rows)
    faults.num_good += num_rows
    return result if isinstance(result, Out) else Out(result)


def _not_again(fault: Fault, num_rows: int) -> AttemptFailed:
    said = f"{fault.why} ({fault.detail})" if fault.detail else fault.why
    return AttemptFailed(
        f"{said} came out of a batch of {num_rows} rows. The stage talks to the world, so its rows are not run again to "
        "find which of them it was"
    )
