"""What a person sees while a plan runs: bars per step on a terminal, plain lines elsewhere, and the results at the end."""

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
from vlpipe.pipeline.engine.plan import PlannedStep, is_gather
from vlpipe.pipeline.engine.records.manifest import Manifest
from vlpipe.pipeline.engine.records.progress_notes import mark_running, rows_done
from vlpipe.pipeline.engine.records.receipts import Receipt
from vlpipe.pipeline.errors import printable
from vlpipe.pipeline.stage import MapStage
from vlpipe.pipeline.storage.store import Store

RESULT_COLUMNS = ["name", "value", "num_rows"]


LOOK_S = 1.0  # how often the terminal is brought up to date
NOTES_S = 5.0  # how often running shards are asked how far they are
SLOW_S = 10.0  # what takes longer says more than its start and its end
SPEAK_S = 30.0  # between two plain lines of a step; more the longer it takes
ASKED = 32  # shards asked how far they are: those that run longest
MANY_ROWS = 1_000


@dataclass
class _Seen:
    """A step while it runs. Times are of `time.monotonic`."""

    total: int | None
    bar: TaskID
    began: float | None = None  # its first unit
    ended: float | None = None
    busy_s: float = 0.0
    num_done: int = 0
    rows_in: int = 0
    rows_out: int = 0
    reused: int = 0
    rejects: Counter[str] = field(default_factory=Counter)
    running: dict[int, tuple[float, int]] = field(default_factory=dict)  # shard -> since when, its rows
    inside: dict[int, int] = field(default_factory=dict)  # running shard -> rows that are done
    asked: float = 0.0
    spoke: float = 0.0
    said: int = 0  # bytes of the step's lines already shown

    @property
    def seconds(self) -> float:
        """From the start of its first shard to the end of its last one."""
        if self.began is None:
            return 0.0
        return max(0.0, (time.monotonic() if self.ended is None else self.ended) - self.began)

    @property
    def slowest_s(self) -> float:
        return max((time.monotonic() - since for since, _ in self.running.values()), default=0.0)

    def part_done(self) -> float:
        """Of the running shards, in shards."""
        return sum(self.inside.get(k, 0) / n for k, (_, n) in self.running.items() if n)


class ProgressWatcher:
    """Draws a run. Use as a context manager; `watcher` is what the runner tells.

    A thread of its own looks at what is under way: with `--local` the work itself is done in the main one.
    """

    def __init__(self, console: Console, store: Store) -> None:
        self.console, self.store = console, store
        self._screen = Screen(console)
        self._seen: dict[str, _Seen] = {}
        self._running: dict[str, PlannedStep] = {}
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look_on, daemon=True)
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
            redirect_stderr=False,  # `Screen` does both
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

    def _look_on(self) -> None:
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
            seen.inside.pop(index, None)
            if seen.began is None:
                seen.began = seen.spoke = now
                self._bars.start_task(seen.bar)
                mark_running(self.store, one.folder)

    def _shard(self, one: PlannedStep, receipt: Receipt, reused: bool) -> None:
        with self._lock:
            seen, now = self._seen[one.name], time.monotonic()
            seen.running.pop(receipt.index, None)
            seen.inside.pop(receipt.index, None)
            seen.num_done += 1
            seen.rows_in += receipt.rows_in
            seen.rows_out += receipt.shard.num_rows
            seen.reused += reused
            seen.rejects.update(receipt.rejects)
            if not reused:
                seen.ended = now
                seen.busy_s += float(receipt.run.get("seconds", 0.0))
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
            line = summary(one, seen.seconds, seen.reused, seen.busy_s)
            self.console.print(line, highlight=False, soft_wrap=True)

    def _tick(self) -> None:
        """Show what gather stages said since the last look, how far running shards are, and what was printed."""
        with self._lock:
            for name, one in self._running.items():
                seen = self._seen[name]
                if is_gather(one):
                    self._pass_on(one, seen)
                self._ask(one, seen)
                self._draw(seen)
                if not self.console.is_terminal:
                    self._speak(one, seen)
            self._screen.show()

    def _pass_on(self, one: PlannedStep, seen: _Seen) -> None:
        rel = f"{one.folder}/_log/said.txt"
        if not self.store.is_local:
            return
        try:
            text = self.store.read_bytes(rel)
        except FileNotFoundError:  # it has said nothing yet, or begins anew
            return
        for line in text[seen.said :].decode(errors="replace").splitlines():
            self.console.print(
                f"[dim]  {escape(one.name)}: {escape(printable(line))}[/dim]", highlight=False, soft_wrap=True
            )
            seen.spoke = time.monotonic()
        seen.said = len(text)

    def _ask(self, one: PlannedStep, seen: _Seen) -> None:
        """Read the notes of the shards that run longest."""
        every_s = NOTES_S if self.store.is_local else SPEAK_S
        if is_gather(one) or seen.slowest_s < SLOW_S or time.monotonic() - seen.asked < every_s:
            return
        longest = sorted(seen.running, key=lambda index: seen.running[index])[:ASKED]
        seen.inside |= rows_done(self.store, one.folder, longest)
        seen.asked = time.monotonic()

    def _draw(self, seen: _Seen) -> None:
        rows = ""
        if seen.num_done:
            rate = seen.rows_in / max(seen.seconds, 1e-3)
            rows = f"{seen.rows_out:,} kept, {seen.rejects.total():,} rejected, {rate:,.0f} rows/s"
        if seen.running and seen.slowest_s >= SLOW_S:
            rows += f"{', ' * bool(rows)}{under_way(seen)}"
        self._bars.update(seen.bar, completed=seen.num_done + seen.part_done(), rows=rows)

    def _speak(self, one: PlannedStep, seen: _Seen) -> None:
        """A plain line of a step that takes long: after `SLOW_S`, then each `SPEAK_S`, then ever more rarely."""
        now = time.monotonic()
        if seen.began is None or not seen.running:
            return
        running_s = now - seen.began
        wait_s = SLOW_S if seen.spoke == seen.began else max(SPEAK_S, running_s / 10)
        if now - seen.spoke < wait_s:
            return
        seen.spoke = now
        parts = [] if is_gather(one) else [f"{seen.num_done:,} of {seen.total or '?'} shard(s)"]
        if seen.num_done:
            parts.append(f"{seen.rows_out:,} rows kept, {seen.rejects.total():,} rejected")
        if seen.slowest_s >= SLOW_S and not is_gather(one):
            parts.append(under_way(seen))
        said = ", ".join([*parts, f"{running_s:.0f} s so far"])
        self.console.print(f"[dim]  {escape(one.name)}: {said}[/dim]", highlight=False, soft_wrap=True)


def under_way(seen: _Seen) -> str:
    """`1,200 of 2,000 rows of 1 shard under way (the longest for 42 s)`"""
    if -1 in seen.running:
        return f"for {seen.slowest_s:.0f} s"
    num_rows = sum(n for _, n in seen.running.values())
    num_done, num = sum(seen.inside.values()), len(seen.running)
    rows = f"{num_done:,} of {num_rows:,} rows of " if seen.inside else ""
    slowest = min(seen.running, key=lambda index: seen.running[index])
    which = f"shard {slowest}" if num == 1 else f"{num} shards"
    longest = "for" if num == 1 else f"shard {slowest} for"
    return f"{rows}{which} under way ({longest} {seen.slowest_s:.0f} s)"


def summary(one: PlannedStep, seconds: float, reused: int = 0, busy_s: float = 0.0) -> str:
    """One line for a finished step. seconds: from its first start to its last end; busy_s: summed over its shards."""
    assert one.manifest is not None
    m = one.manifest
    parts = [f"{m.num_shards} shard(s)" + (f", {reused} reused" if reused else "")]
    if m.rows_in:
        parts.append(f"{m.rows_in:,} rows in")
    parts.append(f"{m.rows_out:,} out")
    if m.rejects:
        parts.append(f"{sum(m.rejects.values()):,} rejected ({reasons(m.rejects)})")
    if m.artifacts:
        parts.append(f"{len(m.artifacts)} artifact(s)")
    parts.append(f"{seconds:.1f} s")
    if abs(busy_s - seconds) > 0.2 * seconds + 0.1:  # shards at once, or waits for what is above
        parts.append(f"{busy_s:.1f} s of work")
    if seconds and not reused:
        parts.append(f"{max(m.rows_in, m.rows_out) / max(seconds, 1e-3):,.0f} rows/s")
    return f"[bold green]{escape(one.name)}[/bold green]: {', '.join(parts)}{keep_warning(one)}"


def keep_warning(one: PlannedStep) -> str:
    """A filter that keeps everything or nothing is rarely what was meant."""
    assert one.manifest is not None
    m, stage = one.manifest, one.keyed.step.stage
    said = ""
    if m.rows_in and not m.rows_out and m.rejects:
        said = f"kept 0 % of its {m.rows_in:,} rows"
    elif isinstance(stage, MapStage) and stage.FILTERS and m.rows_in >= MANY_ROWS and dropped_nothing(m):
        said = f"kept 100 % of its {m.rows_in:,} rows: it is a filter, and nothing failed it"
    return f"\n[bold red]  warning: {escape(one.name)} {said}[/bold red]" if said else ""


def dropped_nothing(m: Manifest) -> bool:
    """No row by a rule, and no text of one: filters of texts count what they drop."""
    return not any(code.startswith("filtered:") for code in m.rejects) and not any(m.counts.values())


def reasons(rejects: Mapping[str, int], num: int = 4) -> str:
    counts = Counter(dict(rejects))
    shown = ", ".join(f"{code.partition(':')[2]} {n:,}" for code, n in counts.most_common(num))
    return shown + (", ..." if len(counts) > num else "")


def results_table(steps: Sequence[PlannedStep], store: Store) -> Table | None:
    """Every step whose rows are results (name, value, num_rows), side by side in one table."""
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
