"""Score histograms, loss curves and the results table. Steps with losses or results are recognized by their schema."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vlpipe.stages.common.row import LOSSES, RESULTS
from vlpipe.stages.report.html import count, esc, number, number_table, share
from vlpipe.stages.report.svg import Scale, axes, bar, chart, line
from vlpipe.stages.report.texts import Scores
from vlpipe.stages.report.view import RunView, StepView

NUM_BINS = 25
MAX_POINTS = 240  # per line; longer curves are averaged in buckets
MIN_SMOOTHED = 40
NUM_COLOURS = 8
MAX_SOURCES = 12  # histograms
MAX_CURVES = 16  # per panel
MAX_LOSSES_BYTES = 1_500_000  # of all panels
MAX_COLUMNS, MAX_METRICS = 40, 250  # of the table of results: 10,000 cells
FATES = (("kept", "kept"), ("dropped", "fault"), ("not judged", "made"))  # (label, CSS class)

Floats = npt.NDArray[np.float64]


def histograms(scores: Sequence[Scores]) -> str:
    """Returns one panel per source of texts, such as `synth`: scores, stacked by kept, dropped and not judged."""
    if not scores:
        return ""
    low = min(0.0, *(float(s.values.min()) for s in scores))
    high = max(1.0, *(float(s.values.max()) for s in scores))
    panels = "".join(_histogram(one, low, high) for one in scores[:MAX_SOURCES])
    if len(scores) > MAX_SOURCES:
        panels += f'<p class="note">and {count(len(scores) - MAX_SOURCES)} more sources</p>'
    keys = " ".join(f'<span class="key {css}"></span>{name}' for name, css in FATES)
    return f'<div class="panels">{panels}</div><p class="legend">{keys}</p>'


def _histogram(scores: Scores, low: float, high: float) -> str:
    edges = np.linspace(low, high, NUM_BINS + 1)
    fates = [scores.kept == 1, scores.kept == 0, scores.kept < 0]
    counts = [np.histogram(scores.values[fate], edges)[0] for fate in fates]  # (3, NUM_BINS)
    tallest = int(np.sum(counts, axis=0).max())
    scale = Scale(low, high, 0, tallest * 1.08)
    bars = []
    for k in range(NUM_BINS):
        base = 0
        for (name, css), column in zip(FATES, counts, strict=True):
            if column[k]:
                title = f"{edges[k]:.2f} to {edges[k + 1]:.2f}: {count(int(column[k]))} {name}"
                bars.append(bar(scale, edges[k], edges[k + 1], base, base + column[k], css, title))
            base += int(column[k])
    num, num_kept = len(scores.values), int(fates[0].sum())
    note = f"{count(num)} scored, {count(num_kept)} kept ({share(num_kept, num)})"
    return _panel(
        f"{scores.source} texts", note, chart(f"scores of {scores.source} texts", axes(scale) + "".join(bars))
    )


def _panel(title: str, note: str, body: str) -> str:
    """Returns a figure; `note` and `body` are HTML."""
    caption = f'<b>{esc(title)}</b> <span class="note">{note}</span>'
    return f"<figure><figcaption>{caption}</figcaption>{body}</figure>"


@dataclass(frozen=True, slots=True)
class Curve:
    """One loss of one workflow step. x: training step, y: value, without values that are not finite."""

    step: str
    css: str
    x: Floats
    y: Floats
    num_lost: int  # number of values that are not finite


def losses(run: RunView) -> str:
    """Returns one panel per loss name, with a curve for each step that has this loss."""
    steps = [s for s in run.steps if _holds(s, LOSSES)]
    panels: dict[str, list[Curve]] = {}
    for k, step in enumerate(steps):
        for name, curve in _curves(step, f"line c{k % NUM_COLOURS}"):
            panels.setdefault(name, []).append(curve)
    if not panels:
        return ""
    body, num_left_out = "", 0
    for name, curves in panels.items():
        made = _losses_panel(name, curves[:MAX_CURVES], len(curves) - MAX_CURVES)
        if len(body) + len(made) > MAX_LOSSES_BYTES:
            made, num_left_out = "", num_left_out + 1
        body += made
    more = f'<p class="note">and {count(num_left_out)} more figures</p>' if num_left_out else ""
    return f'<div class="panels">{body}</div>{more}'


def _holds(step: StepView, schema: pa.Schema) -> bool:
    return step.dataset is not None and step.dataset.num_rows > 0 and step.dataset.schema.equals(schema)


def _curves(step: StepView, css: str) -> Iterator[tuple[str, Curve]]:
    assert step.dataset is not None
    table = step.dataset.table()
    names = np.asarray(table["name"].to_pylist(), object)
    xs, ys = (np.asarray(table[c].to_pylist(), np.float64) for c in ("step", "value"))
    for name in dict.fromkeys(names):
        of_name = names == name
        finite = of_name & np.isfinite(ys)
        order = np.argsort(xs[finite], kind="stable")
        curve = Curve(step.name, css, xs[finite][order], ys[finite][order], int(of_name.sum() - finite.sum()))
        yield str(name), curve


def _losses_panel(name: str, curves: Sequence[Curve], num_more: int) -> str:
    drawn = [c for c in curves if len(c.x)]
    legend = "".join(_last(c) for c in curves) + (f"and {count(num_more)} more steps" if num_more > 0 else "")
    if not drawn:
        return _panel(name, legend, "<p>no value is a number</p>")
    xs, ys = (np.concatenate([getattr(c, axis) for c in drawn]) for axis in ("x", "y"))
    low, high = float(ys.min()), float(ys.max())
    pad = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    scale = Scale(float(xs.min()), float(xs.max()), 0.0 if 0 <= low < 0.3 * high else low - pad, high + pad)
    body = axes(scale) + "".join(_lines(scale, c) for c in drawn)
    return _panel(name, legend, chart(f"{name} by step", body))


def _last(curve: Curve) -> str:
    lost = f", {count(curve.num_lost)} not a number" if curve.num_lost else ""
    last = f"{number(float(curve.y[0]))} &rarr; {number(float(curve.y[-1]))}" if len(curve.y) else "-"
    return f'<span class="curve"><span class="key {curve.css}"></span>{esc(curve.step)} {last}{lost}</span>'


def _lines(scale: Scale, curve: Curve) -> str:
    """Returns a curve as SVG. One of MIN_SMOOTHED or more points is drawn faintly, with its moving average over it.

    Of more than MAX_POINTS points, means of neighbours are drawn.
    """
    x, y = _bucketed(curve.x, curve.y)
    if len(x) < MIN_SMOOTHED:
        return line(scale, x.tolist(), y.tolist(), curve.css, curve.step)
    faint = line(scale, x.tolist(), y.tolist(), f"{curve.css} faint", curve.step)
    return faint + line(scale, x.tolist(), _smooth(y).tolist(), curve.css, f"{curve.step}, smoothed")


def _bucketed(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    if len(x) <= MAX_POINTS:
        return x, y
    parts = np.array_split(np.arange(len(x)), MAX_POINTS)
    return np.array([x[p].mean() for p in parts]), np.array([y[p].mean() for p in parts])


def _smooth(y: Floats) -> Floats:
    """Moving average over a twentieth of the curve around each point, over fewer points at the ends; same length as `y`."""
    half = max(1, len(y) // 40)
    total = np.concatenate([[0.0], np.cumsum(y)])
    at = np.arange(len(y))
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(y))
    smoothed: Floats = (total[high] - total[low]) / (high - low)
    return smoothed


def results(run: RunView) -> str:
    """Returns the results table, with metrics as rows and evaluation steps as columns."""
    steps = [s for s in run.steps if _holds(s, RESULTS)]
    values: dict[str, dict[str, tuple[float | None, int | None]]] = {}
    for step in steps:
        assert step.dataset is not None
        for row in step.dataset.table().to_pylist():
            values.setdefault(row["name"], {})[step.name] = (row["value"], row["num_rows"])
    if not values:
        return ""
    names, metrics = [s.name for s in steps][:MAX_COLUMNS], list(values.items())[:MAX_METRICS]
    table = number_table(names, "".join(_metric(name, found, names) for name, found in metrics))
    if len(steps) <= MAX_COLUMNS and len(values) <= MAX_METRICS:
        return table
    return f"{table}<p class=note>{count(len(values))} figures of {count(len(steps))} evaluations in all</p>"


def _metric(name: str, found: Mapping[str, tuple[float | None, int | None]], steps: Sequence[str]) -> str:
    label = f'<td class="sub">{esc(name)}</td>' if "/" in name else f"<td><b>{esc(name)}</b></td>"
    return f"<tr>{label}{''.join(_cell(found.get(step)) for step in steps)}</tr>"


def _cell(value: tuple[float | None, int | None] | None) -> str:
    if value is None:
        return '<td class="num"></td>'
    score, num_rows = value
    is_share = score is not None and math.isfinite(score) and 0 <= score <= 1
    meter = f'<i class="meter" style="width:{100 * (score or 0):.1f}%"></i>' if is_share else ""
    meter = meter and f'<i class="track">{meter}</i>'
    title = "" if num_rows is None else f' title="{count(num_rows)} rows"'
    shown = f"{score:.3f}" if is_share else number(score)
    return f'<td class="num"{title}>{shown}{meter}</td>'
