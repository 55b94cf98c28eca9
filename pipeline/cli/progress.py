"""Progress output of a run: a bar per step on a terminal, plain lines elsewhere, and a results table at the end."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from vlpipe.pipeline.cli.terminal import Screen
from vlpipe.pipeline.engine.executor import Watcher
from vlpipe.pipeline.engine.planned import PlannedStep, is_gather
from vlpipe.pipeline.engine.records.progress_notes import mark_running, rows_done
from vlpipe.pipeline.engine.records.receipts import Receipt
from vlpipe.pipeline.errors import printable
from vlpipe.pipeline.inspect.alarms import alarms
from vlpipe.pipeline.stage import TIMED
from vlpipe.pipeline.storage.printable import counts
from vlpipe.pipeline.storage.store import Store

RESULT_COLUMNS = ["name", "value", "num_rows"]


LOOK_S = 1.0  # seconds between updates of the terminal
NOTES_S = 5.0  # seconds between reads of the progress notes of running shards
SLOW_S = 10.0  # seconds after which a step or shard also reports intermediate progress
SPEAK_S = 30.0  # min seconds between two plain lines of a step; longer for steps that run long
ASKED = 32  # max number of shards whose progress notes are read: those that run longest
MAX_CODES = 4  # reject codes that are shown with their counts


@dataclass
class _Seen:
    """Progress of a running step. Times are from `time.monotonic`, in seconds."""

    total: int | None  # number of shards, if known
    bar: TaskID
    began: float | None = None  # start of the first shard
    ended: float | None = None  # end of the last shard so far
    busy_s: float = 0.0
    spent: Counter[str] = field(default_factory=Counter)  # seconds of models: "waiting", "computing"
    num_done: int = 0
    rows_in: int = 0
    rows_out: int = 0
    reused: int = 0
    rejects: Counter[str] = field(default_factory=Counter)
    running: dict[int, tuple[float, int]] = field(default_factory=dict)  # shard -> (start time, rows)
    rows_done: dict[int, int] = field(default_factory=dict)  # running shard -> rows done
    notes_read: float = 0.0  # time the progress notes were last read
    last_line: float = 0.0  # time of the last plain line
    shown_bytes: int = 0  # bytes of the step's log already shown

    @property
    def seconds(self) -> float:
        """Seconds from the start of its first shard to the end of its last one, or to now."""
        if self.began is None:
            return 0.0
        return max(0.0, (time.monotonic() if self.ended is None else self.ended) - self.began)

    @property
    def slowest_s(self) -> float:
        return max((time.monotonic() - since for since, _ in self.running.values()), default=0.0)

    def part_done(self) -> float:
        """Returns the finished part of the running shards, as a number of shards."""
        return sum(self.rows_done.get(k, 0) / n for k, (_, n) in self.running.items() if n)


class ProgressWatcher:
    """Shows the progress of a run. Use as a context manager and pass `watcher` to the runner.

    A separate thread updates the output, because with `--local` the work runs in the main thread.
    """

    def __init__(self, console: Console, store: Store) -> None:
        self.console, self.store = console, store
        self._screen = Screen(console)
        self._seen: dict[str, _Seen] = {}
        self._running: dict[str, PlannedStep] = {}
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._update_loop, daemon=True)
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rows]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,  # `Screen` redirects both
            disable=not console.is_terminal,
        )
        self.watcher = Watcher(
            started=self._started, begun=self._begun, shard=self._shard, finished=self._finished
        )

    def __enter__(self) -> ProgressWatcher:
        self._screen.__enter__()
        self._bars.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._tick()
        self._bars.stop()
        self._screen.release()

    def _update_loop(self) -> None:
        while not self._over.wait(LOOK_S):
            self._tick()

    def _started(self, one: PlannedStep, total: int | None) -> None:
        with self._lock:
            bar = self._bars.add_task(escape(one.name), start=False, total=total, rows="")
            self._seen[one.name] = _Seen(total, bar)
            self._running[one.name] = one

    def _begun(self, one: PlannedStep, index: int, num_rows: int) -> None:
        with self._lock:
            seen, now = self._seen[one.name], time.monotonic()
            seen.running[index] = now, num_rows
            seen.rows_done.pop(index, None)
            if seen.began is None:
                seen.began = seen.last_line = now
                self._bars.start_task(seen.bar)
                mark_running(self.store, one.folder)

    def _shard(self, one: PlannedStep, receipt: Receipt, reused: bool) -> None:
        with self._lock:
            seen, now = self._seen[one.name], time.monotonic()
            seen.running.pop(receipt.index, None)
            seen.rows_done.pop(receipt.index, None)
            seen.num_done += 1
            seen.rows_in += receipt.rows_in
            seen.rows_out += receipt.shard.num_rows
            seen.reused += reused
            seen.rejects.update(receipt.rejects)
            if not reused:
                seen.ended = now
                seen.busy_s += float(receipt.run.get("seconds", 0.0))
                seen.spent.update({kind: receipt.run[kind] for kind in TIMED if kind in receipt.run})
            self._draw(seen)

    def _finished(self, one: PlannedStep) -> None:
        self._tick()
        with self._lock:
            self._running.pop(one.name, None)
            seen = self._seen.get(one.name)
            if seen is None:
                self.console.print(f"[dim]{escape(one.name)}: unchanged[/dim]", highlight=False)
                return
            self._bars.remove_task(seen.bar)
            if is_gather(one):
                seen.ended, seen.busy_s = time.monotonic(), seen.seconds
            line = summary(one, seen.seconds, seen.reused, seen.busy_s, seen.spent)
            line += alarm_lines(alarms(one, self.store), one.name)
            self.console.print(line, highlight=False, soft_wrap=True)

    def _tick(self) -> None:
        """Prints new lines of gather stages and captured output, and updates the progress of running shards."""
        with self._lock:
            for name, one in self._running.items():
                seen = self._seen[name]
                if is_gather(one):
                    self._print_gather_lines(one, seen)
                self._read_notes(one, seen)
                self._draw(seen)
                if not self.console.is_terminal:
                    self._print_line(one, seen)
            self._screen.show()

    def _print_gather_lines(self, one: PlannedStep, seen: _Seen) -> None:
        rel = f"{one.folder}/_log/said.txt"
        if not self.store.is_local:
            return
        try:
            text = self.store.read_bytes(rel)
        except FileNotFoundError:  # the step has no lines yet, or was restarted
            return
        for line in text[seen.shown_bytes :].decode(errors="replace").splitlines():
            self.console.print(
                f"[dim]  {escape(one.name)}: {escape(printable(line))}[/dim]", highlight=False, soft_wrap=True
            )
            seen.last_line = time.monotonic()
        seen.shown_bytes = len(text)

    def _read_notes(self, one: PlannedStep, seen: _Seen) -> None:
        """Reads the progress notes of the ASKED shards that run longest, if the last reading is long enough ago."""
        every_s = NOTES_S if self.store.is_local else SPEAK_S
        if is_gather(one) or seen.slowest_s < SLOW_S or time.monotonic() - seen.notes_read < every_s:
            return
        longest = sorted(seen.running, key=lambda index: seen.running[index])[:ASKED]
        seen.rows_done |= rows_done(self.store, one.folder, longest)
        seen.notes_read = time.monotonic()

    def _draw(self, seen: _Seen) -> None:
        rows = ""
        if seen.num_done:
            rate = seen.rows_in / max(seen.seconds, 1e-3)
            rows = f"{seen.rows_out:,} kept, {seen.rejects.total():,} rejected, {rate:,.0f} rows/s"
        if seen.running and seen.slowest_s >= SLOW_S:
            rows += f"{', ' * bool(rows)}{under_way(seen)}"
        self._bars.update(seen.bar, completed=seen.num_done + seen.part_done(), rows=rows)

    def _print_line(self, one: PlannedStep, seen: _Seen) -> None:
        """Prints a plain line about a slow step if it is due: first after `SLOW_S`, then after `SPEAK_S` or a
        tenth of its running time, the longer of both."""
        now = time.monotonic()
        if seen.began is None or not seen.running:
            return
        running_s = now - seen.began
        wait_s = SLOW_S if seen.last_line == seen.began else max(SPEAK_S, running_s / 10)
        if now - seen.last_line < wait_s:
            return
        seen.last_line = now
        parts = [] if is_gather(one) else [f"{seen.num_done:,} of {seen.total or '?'} shard(s)"]
        if seen.num_done:
            parts.append(f"{seen.rows_out:,} rows kept, {seen.rejects.total():,} rejected")
        if seen.slowest_s >= SLOW_S and not is_gather(one):
            parts.append(under_way(seen))
        text = ", ".join([*parts, f"{running_s:.0f} s so far"])
        self.console.print(f"[dim]  {escape(one.name)}: {text}[/dim]", highlight=False, soft_wrap=True)


def under_way(seen: _Seen) -> str:
    """Returns text such as `1,200 of 2,000 rows of 3 shards under way (shard 4 for 42 s)`: shard 4 runs longest."""
    if -1 in seen.running:
        return f"for {seen.slowest_s:.0f} s"
    num_rows = sum(n for _, n in seen.running.values())
    num_done, num = sum(seen.rows_done.values()), len(seen.running)
    rows = f"{num_done:,} of {num_rows:,} rows of " if seen.rows_done else ""
    slowest = min(seen.running, key=lambda index: seen.running[index])
    which = f"shard {slowest}" if num == 1 else f"{num} shards"
    longest = "for" if num == 1 else f"shard {slowest} for"
    return f"{rows}{which} under way ({longest} {seen.slowest_s:.0f} s)"


def summary(
    one: PlannedStep,
    seconds: float,
    reused: int = 0,
    busy_s: float = 0.0,
    spent: Mapping[str, float] | None = None,
) -> str:
    """Returns one line for a finished step. seconds: wall-clock time of the step; busy_s: seconds summed over its shards;
    spent: what the models' seconds in `busy_s` went into.
    """
    assert one.manifest is not None
    m = one.manifest
    parts = [f"{m.num_shards} shard(s)" + (f", {reused} reused" if reused else "")]
    if m.rows_in:
        parts.append(f"{m.rows_in:,} rows in")
    parts.append(f"{m.rows_out:,} out")
    if m.rejects:
        parts.append(f"{sum(m.rejects.values()):,} rejected ({counts(m.rejects, MAX_CODES)})")
    if m.artifacts:
        parts.append(f"{len(m.artifacts)} artifact(s)")
    parts.append(f"{seconds:.1f} s")
    if abs(busy_s - seconds) > 0.2 * seconds + 0.1:  # shards ran in parallel, or waited for steps above
        parts.append(f"{busy_s:.1f} s of work")
    if spent and busy_s:
        parts.append(limits(spent, busy_s))
    if seconds and not reused:
        parts.append(f"{max(m.rows_in, m.rows_out) / max(seconds, 1e-3):,.0f} rows/s")
    return f"[bold green]{escape(one.name)}[/bold green]: {', '.join(parts)}"


def limits(spent: Mapping[str, float], busy_s: float) -> str:
    """Returns text such as `model computing 71 % of the time, waiting for input 20 %, reading, writing and starting 9 %`."""
    waiting, computing = (spent.get(kind, 0.0) / busy_s for kind in TIMED)
    rest = max(0.0, 1 - waiting - computing)
    text = f"model computing {computing:.0%} of the time, waiting for input {waiting:.0%}"
    return f"{text}, reading, writing and starting {rest:.0%}"


def alarm_lines(found: Sequence[str], step: str) -> str:
    """Returns a line in red for each alarm of a step, each after a line break."""
    return "".join(f"\n[bold red]  warning: {escape(step)} {escape(text)}[/bold red]" for text in found)


def results_table(steps: Sequence[PlannedStep], store: Store) -> Table | None:
    """Returns one table with the rows of all done steps whose columns are RESULT_COLUMNS; None if there is no such step."""
    found = [one for one in steps if one.is_done and one.schema_out.names == RESULT_COLUMNS]
    if not found:
        return None
    table = Table(title="Results")
    for column, justify in (("step", "left"), ("name", "left"), ("value", "right"), ("rows", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for one in found:
        for n, row in enumerate(one.dataset(store).table().to_pylist()):
            value = "" if row["value"] is None else f"{row['value']:.4f}"
            table.add_row(
                escape(one.name) if n == 0 else "", escape(row["name"]), value, f"{row['num_rows']:,}"
            )
        table.add_section()
    return table
