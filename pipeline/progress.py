"""What a person sees while a plan runs: bars per step on a terminal, plain lines elsewhere, and the results at the end."""

from __future__ import annotations

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

from vlpipe.pipeline.plan import Planned, is_gather
from vlpipe.pipeline.receipt import Receipt
from vlpipe.pipeline.runner import Watcher
from vlpipe.pipeline.store import Store

RESULT_COLUMNS = ["name", "value", "num_rows"]


@dataclass
class _Seen:
    began: float
    bar: TaskID | None = None
    rows_in: int = 0
    rows_out: int = 0
    reused: int = 0
    rejects: Counter[str] = field(default_factory=Counter)
    said: int = 0  # bytes of the step's lines already shown


class Progress_:
    """Draws a run. Use as a context manager; `watcher` is what the runner tells."""

    def __init__(self, console: Console, store: Store) -> None:
        self.console, self.store = console, store
        self._seen: dict[str, _Seen] = {}
        self._running: dict[str, Planned] = {}
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rows]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.watcher = Watcher(
            started=self._started, shard=self._shard, finished=self._finished, tick=self._tick
        )

    def __enter__(self) -> Progress_:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._tick()
        self._bars.stop()

    def _started(self, one: Planned, total: int | None) -> None:
        seen = self._seen[one.name] = _Seen(time.monotonic())
        seen.bar = self._bars.add_task(one.name, total=total, rows="")
        self._running[one.name] = one

    def _shard(self, one: Planned, receipt: Receipt, reused: bool) -> None:
        seen = self._seen[one.name]
        seen.rows_in += receipt.rows_in
        seen.rows_out += receipt.shard.num_rows
        seen.reused += reused
        seen.rejects.update(receipt.rejects)
        rate = seen.rows_in / max(time.monotonic() - seen.began, 1e-3)
        rows = f"{seen.rows_out:,} kept, {seen.rejects.total():,} rejected, {rate:,.0f} rows/s"
        if seen.bar is not None:
            self._bars.update(seen.bar, advance=1, rows=rows)

    def _finished(self, one: Planned) -> None:
        self._tick()
        self._running.pop(one.name, None)
        seen = self._seen.get(one.name)
        if seen is None:
            self.console.print(f"[dim]{escape(one.name)}: unchanged[/dim]", highlight=False)
            return
        if seen.bar is not None:
            self._bars.remove_task(seen.bar)
        self.console.print(
            summary(one, time.monotonic() - seen.began, seen.reused), highlight=False, soft_wrap=True
        )

    def _tick(self) -> None:
        """Pass on what gather stages said since the last look."""
        if not self.store.is_local:
            return
        for name, one in self._running.items():
            rel = f"{one.folder}/_log/said.txt"
            if is_gather(one) and self.store.exists(rel):
                text, seen = self.store.read_bytes(rel), self._seen[name]
                for line in text[seen.said :].decode(errors="replace").splitlines():
                    self.console.print(
                        f"[dim]  {escape(name)}: {escape(line)}[/dim]", highlight=False, soft_wrap=True
                    )
                seen.said = len(text)


def summary(one: Planned, seconds: float, reused: int = 0) -> str:
    """One line for a finished step."""
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
    rate = max(m.rows_in, m.rows_out) / max(seconds, 1e-3)
    line = f"[bold green]{escape(one.name)}[/bold green]: {', '.join(parts)}, {seconds:.1f} s, {rate:,.0f} rows/s"
    return line + keep_warning(one)


def keep_warning(one: Planned) -> str:
    """A filter that keeps everything or nothing is rarely what was meant."""
    assert one.manifest is not None
    m = one.manifest
    if m.rows_in and not m.rows_out and m.rejects:
        return f"\n[bold red]  {escape(one.name)} kept 0 % of its rows[/bold red]"
    return ""


def reasons(rejects: Mapping[str, int], num: int = 4) -> str:
    counts = Counter(dict(rejects))
    shown = ", ".join(f"{code.partition(':')[2]} {n:,}" for code, n in counts.most_common(num))
    return shown + (", ..." if len(counts) > num else "")


def results_table(steps: Sequence[Planned], store: Store) -> Table | None:
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
