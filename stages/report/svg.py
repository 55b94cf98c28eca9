"""Axes, lines and bars as SVG text. Colours are CSS classes, so that charts follow the light or dark theme."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vlpipe.stages.report.html import esc, number

WIDTH, HEIGHT = 380, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 26


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps values to pixels, for both axes."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        span = (self.x_high - self.x_low) or 1.0
        return LEFT + (value - self.x_low) / span * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        span = (self.y_high - self.y_low) or 1.0
        return HEIGHT - BOTTOM - (value - self.y_low) / span * (HEIGHT - TOP - BOTTOM)


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Returns about `about` round numbers within [low, high]: 0, 0.2, 0.4, ... (steps of 1, 2 or 5 times a power of ten)."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def axes(scale: Scale) -> str:
    """Returns grid lines with their labels."""
    parts = []
    for value in ticks(scale.y_low, scale.y_high):
        y = scale.y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick end" x="{LEFT - 6}" y="{y + 3.5:.1f}">{number(value)}</text>')
    for value in ticks(scale.x_low, scale.x_high, 5):
        x = scale.x(value)
        parts.append(f'<text class="tick mid" x="{x:.1f}" y="{HEIGHT - 8}">{number(value)}</text>')
    y = HEIGHT - BOTTOM
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
    return "".join(parts)


def line(scale: Scale, xs: Sequence[float], ys: Sequence[float], css: str, title: str) -> str:
    points = " ".join(f"{scale.x(x):.1f},{scale.y(y):.1f}" for x, y in zip(xs, ys, strict=True))
    return f'<polyline class="{css}" points="{points}"><title>{esc(title)}</title></polyline>'


def bar(scale: Scale, low: float, high: float, bottom: float, top: float, css: str, title: str) -> str:
    """Returns a bar over [low, high] in x and [bottom, top] in y (values, not pixels), with a small gap on both sides."""
    x, width = scale.x(low) + 0.75, scale.x(high) - scale.x(low) - 1.5
    y, height = scale.y(top), scale.y(bottom) - scale.y(top)
    return (
        f'<rect class="{css}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}">'
        f"<title>{esc(title)}</title></rect>"
    )


def chart(label: str, body: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{esc(label)}">{body}</svg>'
    )
