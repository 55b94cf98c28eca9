"""What gather steps said while they ran, `_log/said.txt`: their last line, and losses and rates of a training under way.

A training says a line such as `step 50/200  loss 9.763  itc 5.044  195 samples/s (loader 3,568, waited 4%)  25 s left`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from vlpipe.pipeline.inspect.alarms import said_lines, said_warnings
from vlpipe.pipeline.storage.store import Store

STEP = re.compile(r"step ([\d,]+)/([\d,]+)(?:\s+|$)")
VALUE = re.compile(r"([A-Za-z_][\w.@/-]*) (-?(?:\d+(?:\.\d+)?(?:e[-+]?\d+)?|nan|inf))")
RATE = re.compile(r"([\d,]+(?:\.\d+)?) samples/s")


@dataclass(frozen=True, slots=True)
class Said:
    """last: the last line, or empty. done, total: training steps, 0 unless it trains. points: (step, name, value) per figure
    of each line; rates: (step, samples per second). warnings: lines that begin with `warning:`, without that word, or are an
    ALARM."""

    last: str = ""
    done: int = 0
    total: int = 0
    points: tuple[tuple[int, str, float], ...] = field(default=())
    rates: tuple[tuple[int, float], ...] = field(default=())
    warnings: tuple[str, ...] = field(default=())


def read_said(store: Store, folder: str) -> Said:
    """Returns what the step said so far, nothing if it said nothing. Lines that are no progress of a training only count as
    the last one."""
    lines = said_lines(store, folder)
    steps = [(found, line) for line in lines if (found := STEP.match(line))]
    points, rates = dict[tuple[int, str], float](), dict[int, float]()
    for found, line in steps:
        at = _number(found[1])
        points |= {(at, name): value for name, value in figures(line[found.end() :])}
        if rate := RATE.search(line):
            rates[at] = float(rate[1].replace(",", ""))
    done, total = (_number(steps[-1][0][1]), _number(steps[-1][0][2])) if steps else (0, 0)
    return Said(
        lines[-1] if lines else "",
        done,
        total,
        tuple((at, name, value) for (at, name), value in sorted(points.items())),
        tuple(sorted(rates.items())),
        tuple(said_warnings(lines)),
    )


def figures(text: str) -> Iterator[tuple[str, float]]:
    """Yields the (name, value) pairs of a line, which are separated by two spaces."""
    for part in re.split(r"\s{2,}", text.strip()):
        if found := VALUE.fullmatch(part):
            yield found[1], float(found[2])


def _number(text: str) -> int:
    return int(text.replace(",", ""))
