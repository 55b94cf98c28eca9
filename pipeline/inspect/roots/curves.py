"""Loss curves and results of the steps of a root. Steps that have them are recognized by their columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlpipe.pipeline.inspect.roots.said import Said, read_said
from vlpipe.pipeline.inspect.roots.state import StepState
from vlpipe.pipeline.shard import read_batches
from vlpipe.pipeline.storage.store import Store

LOSS_COLUMNS = ("step: int64", "name: string", "value: double")
RESULT_COLUMNS = ("name: string", "value: double", "num_rows: int64")
MAX_POINTS = 400  # per curve; of longer ones, means of neighbours


@dataclass(frozen=True, slots=True)
class Curve:
    """One figure of one training. x: training steps; y: values, None if not finite. live: the training is under way, and
    the values are those of the lines that it said so far."""

    folder: str
    name: str
    x: tuple[float, ...]
    y: tuple[float | None, ...]
    live: bool


@dataclass(frozen=True, slots=True)
class Result:
    """One figure of one evaluation."""

    folder: str
    name: str
    value: float | None
    num_rows: int | None


def curves(store: Store, steps: Sequence[StepState]) -> list[Curve]:
    """Returns the curves of all trainings: of finished ones from their rows, of others from what they said so far, and of
    both the samples per second."""
    found: list[Curve] = []
    for one in steps:
        if one.columns != LOSS_COLUMNS:
            continue
        live = one.state != "done"
        said = one.said if one.said.points else read_said(store, one.folder)
        points = [*said.points] if live else _rows(store, one)
        by_name: dict[str, list[tuple[int, float]]] = {}
        for at, name, value in points:
            by_name.setdefault(name, []).append((at, value))
        found += [_curve(one.folder, name, line, live) for name, line in by_name.items()]
        found += _rate(one.folder, said, live)
    return found


def _rows(store: Store, one: StepState) -> list[tuple[int, str, float]]:
    points: list[tuple[int, str, float]] = []
    for receipt in one.receipts:
        for table in read_batches(store, receipt.shard, ["step", "name", "value"]):
            columns = (table[name].to_pylist() for name in ("step", "name", "value"))
            points += [
                (at, name, math.nan if value is None else value)
                for at, name, value in zip(*columns, strict=True)
            ]
    return points


def _rate(folder: str, said: Said, live: bool) -> list[Curve]:
    return [_curve(folder, "samples/s", list(said.rates), live)] if said.rates else []


def _curve(folder: str, name: str, line: Sequence[tuple[int, float]], live: bool) -> Curve:
    line = sorted(line)
    x, y = (np.array([pair[k] for pair in line], np.float64) for k in (0, 1))
    if len(x) > MAX_POINTS:
        parts = np.array_split(np.arange(len(x)), MAX_POINTS)
        x, y = (np.array([each[part].mean() for part in parts]) for each in (x, y))
    finite = tuple(value if math.isfinite(value) else None for value in y.tolist())
    return Curve(folder, name, tuple(x.tolist()), finite, live)


def results(store: Store, steps: Sequence[StepState]) -> list[Result]:
    """Returns the figures of all evaluations that are done."""
    found: list[Result] = []
    for one in steps:
        if one.columns != RESULT_COLUMNS or one.state != "done":
            continue
        for receipt in one.receipts:
            for table in read_batches(store, receipt.shard, ["name", "value", "num_rows"]):
                found += [
                    Result(one.folder, row["name"], _finite(row["value"]), row["num_rows"])
                    for row in table.to_pylist()
                ]
    return found


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
