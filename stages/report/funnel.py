"""The funnel: rows in, rows out and reasons of rejects, per step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from vlpipe.pipeline.errors import cut
from vlpipe.pipeline.shard import Reject
from vlpipe.stages.report.html import count, esc, seconds, share, stranger
from vlpipe.stages.report.view import RunView, StepView

MAX_EXAMPLES = 3  # rejects shown per reason
MAX_DETAIL = 200  # characters
MAX_CODES = 24  # reasons and counts shown per step, the most frequent ones
MAX_DETAILED_BYTES, MAX_BYTES = (
    1_200_000,
    1_500_000,
)  # of the table; then lines have no details, then there are none
STATUS = {"done": "good", "running": "busy", "failed": "bad"}


def funnel(run: RunView) -> str:
    """Returns the table of steps as HTML."""
    largest = max((s.rows_in for s in run.steps if s.drops_rows), default=0)
    head = "".join(
        f'<th class="{"num" if name in NUMBERS else ""}">{name}</th>'
        for name in ("step", "rows", "in", "out", "rejected", "time")
    )
    rows, num_left_out = "", 0
    brief = False
    for number, step in enumerate(run.steps):
        made = _step(step, largest, brief)
        if not brief and len(rows) + len(made) > MAX_DETAILED_BYTES:
            brief, made = True, _step(step, largest, brief=True)
        if len(rows) + len(made) > MAX_BYTES:
            num_left_out = len(run.steps) - number
            break
        rows += made
    more = f'<p class="note">and {count(num_left_out)} more steps</p>' if num_left_out else ""
    return (
        f'<div class="scroll"><table class="funnel"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{more}{_LEGEND}"
    )


NUMBERS = {"in", "out", "rejected", "time"}
_LEGEND = (
    '<p class="legend"><span class="key kept"></span>went on '
    '<span class="key filtered"></span>filtered by a rule <span class="key fault"></span>fault</p>'
)


def _step(step: StepView, largest: int, brief: bool = False) -> str:
    rejected = count(step.num_rejected) if step.num_rejected else ""
    use = esc(step.use).replace(":", ":<wbr>")  # allows a line break in a long name
    name = f"<b>{esc(step.name)}</b>{_status(step.status)}<br><code>{use}</code>"
    return (
        f'<tr><td class="name">{name}</td>'
        f'<td class="wide">{_bar(step, largest)}{"" if brief else _details(step)}</td>'
        f'<td class="num">{count(step.rows_in)}</td><td class="num">{count(step.rows_out)}</td>'
        f'<td class="num">{rejected}</td><td class="num">{seconds(step.seconds)}</td></tr>'
    )


def _status(status: str) -> str:
    return "" if status == "done" else f' <span class="chip {STATUS.get(status, "")}">{esc(status)}</span>'


def _bar(step: StepView, largest: int) -> str:
    """Returns a bar, scaled to the largest step so that all bars are comparable."""
    if not step.drops_rows:
        note = f"writes {count(step.rows_out)} rows of its own" if step.rows_out else ""
        return f'<span class="note">{note}</span>'
    parts = (("kept", step.rows_out), ("filtered", step.num_of("filtered")), ("fault", step.num_of("fault")))
    segments = "".join(
        f'<i class="{css}" style="width:{100 * rows / largest:.2f}%" title="{css}: {count(rows)}"></i>'
        for css, rows in parts
        if rows
    )
    return f'<div class="bar">{segments}</div>'


def _details(step: StepView) -> str:
    ordered = sorted(step.rejects.items(), key=lambda item: (-item[1], item[0]))
    chips = "".join(_reason(code, rows, step.rows_in) for code, rows in ordered[:MAX_CODES])
    chips += f"<small>and {count(len(ordered) - MAX_CODES)} more</small>" if len(ordered) > MAX_CODES else ""
    reasons = f'<div class="reasons">{chips}</div>' if chips else ""
    inner = _params(step.params) + _counts(step.counts) + _examples(step.rejects_sample)
    more = f"<details><summary>parameters, counts and examples</summary>{inner}</details>" if inner else ""
    return reasons + more


def _reason(code: str, rows: int, rows_in: int) -> str:
    kind, _, why = code.partition(":")
    css = "filtered" if kind == "filtered" else "fault"
    numbers = f"<b>{count(rows)}</b> <small>{share(rows, rows_in)}</small>"
    return f'<span class="reason {css}">{esc(cut(why, MAX_DETAIL))} {numbers}</span>'


def _params(params: Mapping[str, Any]) -> str:
    if not params:
        return ""
    rows = "".join(
        f"<tr><td><code>{esc(name)}</code></td><td><code>{esc(_value(value))}</code></td></tr>"
        for name, value in params.items()
    )
    return f'<table class="params">{rows}</table>'


def _counts(counts: Mapping[str, int]) -> str:
    """Returns a table of the stage's own counts, besides rejects."""
    rows = "".join(
        f'<tr><td><code>{esc(name)}</code></td><td class="num">{count(num)}</td></tr>'
        for name, num in list(counts.items())[:MAX_CODES]
    )
    return f'<table class="params">{rows}</table>' if rows else ""


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return stranger(text)


def _examples(sample: Any) -> str:
    by_reason: dict[str, list[Reject]] = {}
    for reject in sample:
        by_reason.setdefault(f"{reject.kind}:{reject.why}", []).append(reject)
    lines = [r for code in sorted(by_reason)[:MAX_CODES] for r in by_reason[code][:MAX_EXAMPLES]]
    if not lines:
        return ""
    rows = "".join(
        f"<tr><td>{esc(r.why)}</td><td><code title='{esc(cut(r.id, MAX_DETAIL))}'>{esc(r.id[:10])}</code></td>"
        f"<td>{esc(stranger(r.detail, MAX_DETAIL))}</td></tr>"
        for r in lines
    )
    return f'<table class="params">{rows}</table>'
