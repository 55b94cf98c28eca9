"""Runs a stage's function on a batch and finds the rows for which it fails: a row is rejected only if it fails alone.

A failing batch is halved. Once more than `Faults.budget` rows of the shard are rejected, halving costs more calls than
it saves, and failing batches are run row by row. So no good row is lost, and a batch of n rows costs at most 3n calls.
The runner decides whether a step has too many faults, since that depends on all its rows. A shard fails
the step early only if its own faults exceed the allowance for all rows (`Faults.most`), or if the step has produced
`Faults.hopeless` faults and no good row.
Infrastructure errors (memory, disk, a missing package) are no row's fault: they fail the attempt and reach the runner.
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

from vlpipe.pipeline.engine.records.rejects import MAX_CODE
from vlpipe.pipeline.errors import AttemptFailed, RowFault, SchemaError, StepFailed, VlpipeError
from vlpipe.pipeline.shard import Out, Reject
from vlpipe.pipeline.stage import PartsWork, Work
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
MAX_DETAIL = 500  # max characters of a reject's detail
MAX_TRACEBACKS, MAX_TRACEBACK = 20, 8_000  # max per shard, and max characters of each
HALF_SHAPED = 10  # rows without the declared columns, with no good row, before the stage is considered broken
HOPELESS = (1_000, 10_000)  # min and max faults, with no good row, before the stage is considered broken


class ChildDied(Exception):
    """The isolated process that ran the function died."""


class DeadlinePassed(Exception):
    """The isolated process that ran the function exceeded its deadline and was killed."""


class MissingColumns(Exception):
    """A stage returned something other than a table with the declared columns."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What a reject records of an exception. traceback: empty if the stage itself chose the code (RowFault)."""

    why: str
    detail: str
    traceback: str = ""


class ChildRaised(Exception):
    """The function raised in the isolated process."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        super().__init__(fault.why, fault.detail)


def is_nobodys(error: BaseException) -> bool:
    """Returns True for infrastructure errors (memory, disk, a missing package), which are no row's fault."""
    if isinstance(error, (MemoryError, ImportError, VlpipeError)):
        return True
    if isinstance(error, OSError) and error.errno in NOBODYS_ERRNO:
        return True
    return is_out_of_memory(error) or "CUDA error" in storable(error) or "cuDNN error" in storable(error)


def is_out_of_memory(error: BaseException) -> bool:
    """Returns True if Python, torch or Ray found no memory, on the host or on a GPU; torch has no type for the host's."""
    if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__:
        return True
    return isinstance(error, RuntimeError) and ("DefaultCPUAllocator" in storable(error))


def is_raised(error: BaseException) -> bool:
    """Returns True if the stage raised the exception, also by a Rust panic or `sys.exit`; False for Ctrl-C, for example."""
    if isinstance(error, Exception) or type(error).__name__ == "PanicException":
        return True
    frames = list(traceback.walk_tb(error.__traceback__))
    last = frames[-1][0].f_globals.get("__name__", "") if frames else ""
    return isinstance(error, SystemExit) and not last.startswith(("ray.", "vlpipe.pipeline."))


def fault_of(error: BaseException, home: str = "") -> Fault:
    """Returns the fault that a reject records for an exception. home: the module the stage is defined in."""
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
    text = storable(error, MAX_DETAIL - len(where))
    whole = "".join(traceback.format_exception(error, limit=-30))
    return Fault(
        storable(f"error_{type(error).__name__}", MAX_CODE), f"{text}{where}", storable(whole, MAX_TRACEBACK)
    )


def row_fault(error: Exception, home: str) -> RowFault:
    """Returns a RowFault for an unexpected exception in one row of a stage with `OBSERVES_WORLD`.

    Infrastructure errors are raised again. The traceback is printed, so that it ends up in the shard's log.
    """
    if isinstance(error, RowFault):
        return error
    if is_nobodys(error):
        raise error
    fault = fault_of(error, home)
    print(fault.traceback, file=sys.stderr)
    return RowFault(fault.why, fault.detail)


def line_of(at: TracebackType | None, home: str = "") -> str:
    """Returns ` (file.py:12)`, the innermost line of the stage's code, not of a library it calls; "" if there is none."""
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
    """Counts the faulty rows of one shard, by reason, and decides when the step can no longer succeed.

    budget: above it, failing batches are run row by row instead of halved. most: faults that `max_reject_rate` allows
    over all rows of the step; None if not known yet. hopeless: this many faults and no good row show that the stage is
    broken; None if other shards had good rows. home: the stage's module.
    """

    budget: int
    most: int | None = None
    hopeless: int | None = None
    home: str = ""
    found: Counter[str] = field(default_factory=Counter)
    num_good: int = 0  # rows that did not fail
    tracebacks: dict[str, str] = field(default_factory=dict)  # code -> its first traceback

    @property
    def over_budget(self) -> bool:
        return self.found.total() > self.budget

    def blame(self, row_id: str, error: BaseException) -> Reject:
        """Counts a faulty row and returns its reject. Raises StepFailed or SchemaError if the step cannot succeed."""
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
                f"more than {max(self.budget, self.most):,} rows of one shard failed; {worst(self.found)}. "
                "That is more than max_reject_rate allows for all rows of the step"
            )
        if self.hopeless and not self.num_good and num >= self.hopeless:
            raise StepFailed(f"all of the first {num:,} rows failed; {worst(self.found)}")
        return Reject(row_id, "fault", fault.why, fault.detail)


def worst(reasons: Counter[str], num: int = 3) -> str:
    """Returns the `num` most frequent reasons as text: `most frequent reasons: timeout x 12, http_404 x 3`."""
    return "most frequent reasons: " + ", ".join(f"{why} x {n}" for why, n in reasons.most_common(num))


def hopeless_at(num_allowed: float) -> int:
    """Returns the number of faults, with no good row, after which a stage is considered broken.

    num_allowed: faults allowed in the whole step.
    """
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
    """Yields the outputs for a batch, in row order; rows that fail alone become rejects.

    settle: converts the function's result for n rows to the declared output and counts good rows; its exceptions are
    handled like the function's. once: the stage contacts external servers, so no row is run twice: a failing batch
    raises AttemptFailed instead of being halved. alone_before: this single row has already failed once.
    """
    has_part = False
    try:
        if isinstance(work, PartsWork):
            for part in work.parts(batch):
                num = part.table.num_rows + len(part.rejects) if once else 0 if has_part else batch.num_rows
                out = _settled(part, num, settle, faults)
                has_part = True
                yield out
            return
        out = _settled(work(batch), batch.num_rows, settle, faults)
    except BaseException as error:
        if is_nobodys(error) or not is_raised(error):
            raise
        if has_part and not once:
            why = fault_of(error, faults.home).why
            raise AttemptFailed(f"the stage failed ({why}) after a part of its output for a batch") from error
        if once and batch.num_rows > 1:
            raise _attempt_failed(fault_of(error, faults.home), batch.num_rows) from error
        failed = error
    else:
        yield out
        return
    if batch.num_rows > 1:
        size = 1 if faults.over_budget else (batch.num_rows + 1) // 2
        for start in range(0, batch.num_rows, size):
            yield from run_guarded(work, batch.slice(start, size), faults, settle=settle)
    elif not alone_before and not once:  # retry once: a transient fault is not the row's
        yield from run_guarded(work, batch, faults, settle=settle, alone_before=True)
    else:
        yield Out(batch.slice(0, 0), [faults.blame(batch["id"][0].as_py(), failed)])


def _settled(result: Any, num_rows: int, settle: Settle | None, faults: Faults) -> Out:
    if settle:
        return settle(result, num_rows)
    faults.num_good += num_rows
    return result if isinstance(result, Out) else Out(result)


def _attempt_failed(fault: Fault, num_rows: int) -> AttemptFailed:
    text = f"{fault.why} ({fault.detail})" if fault.detail else fault.why
    return AttemptFailed(
        "the stage must return a reject for each row that fails, because it contacts external servers and no row is run "
        f"again to find the failing one; but a batch of {num_rows} rows failed with {text}"
    )
