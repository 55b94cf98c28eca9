"""What limits each step that runs a model: computing, its input, or reading and writing."""

from __future__ import annotations

from vlpipe.stages.report.html import esc, number, number_table, share
from vlpipe.stages.report.view import RunView, StepView

COLUMNS = ("rows/s", "computing alone, rows/s", "achieved", "waiting", "other", "limited by")


def limits(run: RunView) -> str:
    """Returns a table with a line per step whose shards measured their model, as HTML; "" without any.

    Rates are of one worker. "Computing alone" is the rate at which it would work if it never waited; "achieved" is the share
    of it that was reached, which is the share of the time that it computes. Computing is the model with what prepares and
    reads its tensors; "other" is reading, writing and starting.
    """
    rows = "".join(_line(step) for step in run.steps if step.spent.get("seconds") and step.spent["rows"])
    return number_table(COLUMNS, rows) if rows else ""


def _line(step: StepView) -> str:
    total, computing, waiting = (step.spent[name] for name in ("seconds", "computing", "waiting"))
    other = max(0.0, total - computing - waiting)
    parts = {"computing": computing, "its input": waiting, "reading and writing": other}
    alone = step.spent["rows"] / computing if computing else None
    cells = (
        number(step.spent["rows"] / total),
        number(alone),
        *(_percent(value, total) for value in (computing, waiting, other)),
        max(parts, key=lambda name: parts[name]),
    )
    return f"<tr><td>{esc(step.name)}</td>" + "".join(f'<td class="num">{c}</td>' for c in cells) + "</tr>"


def _percent(value: float, total: float) -> str:
    return share(round(1000 * value), round(1000 * total))
