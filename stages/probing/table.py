"""One table of several labelled sets: figures of evaluation steps as columns per set, their means last.

CLIP reports its probes this way over 27 sets: Radford et al. 2021, https://arxiv.org/abs/2103.00020, table 10.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import VlpipeError, did_you_mean
from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import Dataset, GatherStage, Job, Stage
from vlpipe.stages.common.row import RESULTS

FILE_NAME = "table.md"
MEAN = "mean"


@dataclass(frozen=True, kw_only=True)
class SuiteTable(GatherStage):
    """Emits RESULTS `LINE/SET` and `LINE`, the mean over the sets, for each figure.

    Inputs: evaluation steps of a matrix. figures: STEP.METRIC; a line is a figure, or with further axes, such as one of
    models, a figure of each: `clip/linear.linear`. set_label: which label of the steps' names is the set. num_rows: of a
    mean the number of sets. Raises VlpipeError if a line lacks a set that others have, or a figure is not there.

    Artifact table.md: a line per line, a column per set.
    """

    NAME: ClassVar[str] = "probing.table:SuiteTable"
    ROWS_ARE: ClassVar[str] = "figures and their means over sets"

    figures: list[str]
    set_label: Annotated[int, Field(ge=0)] = 0

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "probing.table", name=pa.string(), value=pa.float64())
        return RESULTS

    def preflight(self) -> list[str]:
        wrong = [figure for figure in self.figures if not all(figure.partition(".")[::2])]
        return [f"figures: wanted STEP.METRIC, got {wrong or 'none'}"] if wrong or not self.figures else []

    def names_in_key(self, names: Sequence[str]) -> Sequence[str]:
        return names

    def with_inputs(self, names: Sequence[str]) -> Stage:
        self._cells(names)
        return self

    def run(self, job: Job) -> None:
        lines = self._lines({data.name: data for data in job.inputs})
        rows = []
        for line, of in lines.items():
            rows += [
                {"name": f"{line}/{name}", "value": value, "num_rows": num}
                for name, (value, num) in of.items()
            ]
            mean = statistics.fmean(value for value, _ in of.values())
            rows.append({"name": line, "value": mean, "num_rows": len(of)})
        job.emit(pa.Table.from_pylist(rows, RESULTS))
        Path(job.artifacts, FILE_NAME).write_text(page(lines), encoding="utf-8")

    def _cells(self, steps: Sequence[str]) -> dict[tuple[str, str], dict[str, str]]:
        """Returns (step of the file, its other labels) -> set -> step. Raises VlpipeError if they do not fit each other."""
        found: dict[tuple[str, str], dict[str, str]] = {}
        for step in steps:
            base, _, cell = step.partition("@")
            labels = cell.split("-") if cell else []
            if self.set_label >= len(labels):
                raise VlpipeError(
                    f"set_label: {self.set_label} is not the number of a label of input {step!r}, which has {len(labels)}"
                )
            name = labels.pop(self.set_label)
            found.setdefault((base, "-".join(labels)), {})[name] = step
        for figure in self.figures:
            base = figure.partition(".")[0]
            known = {one for one, _ in found}
            if base not in known:
                raise VlpipeError(f"figures: no input is named {base!r}{did_you_mean(base, known)}")
        sets = dict.fromkeys(name for of in found.values() for name in of)
        for (base, labels_), of in found.items():
            if lost := [name for name in sets if name not in of]:
                raise VlpipeError(
                    f"{base} {labels_} has no input of set {lost[0]!r}, as others have".replace("  ", " ")
                )
        return {cell: {name: of[name] for name in sets} for cell, of in found.items()}

    def _lines(self, by_name: Mapping[str, Dataset]) -> dict[str, dict[str, tuple[float, int]]]:
        """Returns line -> set -> (value, number of rows)."""
        cells = self._cells(list(by_name))
        others = dict.fromkeys(labels for _, labels in cells)
        found: dict[str, dict[str, tuple[float, int]]] = {}
        for figure in self.figures:
            base, _, metric = figure.partition(".")
            for labels in others:
                if (of := cells.get((base, labels))) is not None:
                    line = f"{labels}/{figure}" if labels else figure
                    found[line] = {name: _value(by_name[step], metric) for name, step in of.items()}
        return found


def _value(data: Dataset, metric: str) -> tuple[float, int]:
    rows = {row["name"]: row for row in data.table(["name", "value", "num_rows"]).to_pylist()}
    if metric not in rows:
        raise VlpipeError(f"figures: {data.name} has no figure {metric!r}{did_you_mean(metric, rows)}")
    value = rows[metric]["value"]
    if value is None or not math.isfinite(value):
        raise VlpipeError(f"figures: {metric} of {data.name} is {'null' if value is None else value}")
    return value, rows[metric]["num_rows"]


def page(lines: Mapping[str, Mapping[str, tuple[float, int]]]) -> str:
    """Returns table.md. lines: line -> set -> (value, number of rows), the sets in one order."""
    sets = list(next(iter(lines.values())))
    head = ["", *sets, MEAN]
    body = [
        [
            line,
            *(f"{value:.3f}" for value, _ in of.values()),
            f"{statistics.fmean(v for v, _ in of.values()):.3f}",
        ]
        for line, of in lines.items()
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, ["---"] * len(head), *body))
