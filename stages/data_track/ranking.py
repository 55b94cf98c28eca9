"""Ranks entries of a data track by several scores over several seeds, as DataComp's leaderboard does over its tasks.

DataComp: https://arxiv.org/abs/2304.14108; its ranking score is the mean over all tasks, too.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import VlpipeError, did_you_mean
from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import Dataset, GatherStage, Job, Stage
from vlpipe.stages.common.row import RESULTS

MEAN = "mean"  # the score by which entries are ranked
FILE_NAME = "table.md"
# 97.5 % points of Student's t with 1 to 30 degrees of freedom
T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)

Scores = Mapping[str, float]  # name of a score -> value


@dataclass(frozen=True, kw_only=True)
class Ranking(GatherStage):
    """Emits RESULTS `ENTRY/SCORE`, the best entry first, and `ENTRY/SCORE +-`, half of the 95 % interval of this mean.

    Inputs: evaluation steps of a matrix. entry_label: which label of their names is the entry; the others, such as the seed,
    are its runs. scores: name -> figures STEP.METRIC, whose mean is the score; entries are ranked by the mean of all scores.
    A score's value is the mean over the runs, and its interval Student's, null with one run; num_rows is the number of runs.

    Artifact table.md: a line per entry, and in how many runs each entry is above each other one, on the same seed.
    """

    NAME: ClassVar[str] = "data_track.ranking:Ranking"
    ORDERED: ClassVar[frozenset[str]] = frozenset({"scores"})
    ROWS_ARE: ClassVar[str] = "means of figures over runs"

    scores: dict[str, list[str]]
    entry_label: Annotated[int, Field(ge=0)] = 0

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "data_track.ranking", name=pa.string(), value=pa.float64())
        return RESULTS

    def preflight(self) -> list[str]:
        problems = [] if self.scores else ["scores: wanted at least one"]
        for name, figures in self.scores.items():
            wrong = [figure for figure in figures if not all(figure.partition(".")[::2])]
            if name == MEAN:
                problems.append(f"scores: {MEAN!r} is the name of the mean of all scores")
            if not figures or wrong:
                problems.append(f"scores.{name}: wanted figures STEP.METRIC, got {wrong or figures}")
        return problems

    def names_in_key(self, names: Sequence[str]) -> Sequence[str]:
        return names

    def with_inputs(self, names: Sequence[str]) -> Stage:
        self._cells(names)
        return self

    def run(self, job: Job) -> None:
        by_name = {data.name: data for data in job.inputs}
        found = {
            entry: [self._scores({base: by_name[step] for base, step in of.items()}) for of in runs.values()]
            for entry, runs in self._cells(list(by_name)).items()
        }
        ranked = sorted(found, key=lambda entry: -statistics.fmean(of[MEAN] for of in found[entry]))
        rows = []
        for entry in ranked:
            for name in (MEAN, *self.scores):
                mean, half = interval([of[name] for of in found[entry]])
                num_runs = len(found[entry])
                rows.append({"name": f"{entry}/{name}", "value": mean, "num_rows": num_runs})
                rows.append({"name": f"{entry}/{name} +-", "value": half, "num_rows": num_runs})
        job.emit(pa.Table.from_pylist(rows, RESULTS))
        text = page({entry: found[entry] for entry in ranked})
        Path(job.artifacts, FILE_NAME).write_text(text, encoding="utf-8")

    def _cells(self, steps: Sequence[str]) -> dict[str, dict[str, dict[str, str]]]:
        """Returns entry -> run -> step of the file -> its step in this cell, entries and runs in the order of `steps`.

        Raises VlpipeError if a step has no entry, or one that a score needs is missing in a cell.
        """
        found: dict[str, dict[str, dict[str, str]]] = {}
        for step in steps:
            base, _, cell = step.partition("@")
            labels = cell.split("-") if cell else []
            if self.entry_label >= len(labels):
                raise VlpipeError(
                    f"entry_label: {self.entry_label} is not the number of a label of input {step!r}, which has "
                    f"{len(labels)}; wanted names such as BASE@ENTRY-SEED, whose labels 0 and 1 are ENTRY and SEED"
                )
            entry = labels.pop(self.entry_label)
            found.setdefault(entry, {}).setdefault("-".join(labels), {})[base] = step
        bases = {base for runs in found.values() for of in runs.values() for base in of}
        needed = {
            figure.partition(".")[0]: name for name, figures in self.scores.items() for figure in figures
        }
        for base, name in needed.items():
            if base not in bases:
                raise VlpipeError(f"scores.{name}: no input is named {base!r}{did_you_mean(base, bases)}")
        runs = dict.fromkeys(run for of in found.values() for run in of)
        for entry, of in found.items():
            for run in runs:
                if lost := [base for base in needed if base not in of.get(run, ())]:
                    raise VlpipeError(
                        f"entry {entry!r} has no input {lost[0]}@... of the run {run!r}, as others have"
                    )
        return {entry: {run: of[run] for run in runs} for entry, of in found.items()}

    def _scores(self, steps: Mapping[str, Dataset]) -> Scores:
        """Returns the scores of a cell. steps: step of the file -> its figures."""
        figures = {
            f"{base}.{row['name']}": (data.name, row["value"])
            for base, data in steps.items()
            for row in data.table(["name", "value"]).to_pylist()
        }
        found: dict[str, float] = {}
        for name, wanted in self.scores.items():
            for figure in wanted:
                if figure not in figures:
                    raise VlpipeError(f"scores.{name}: there is no {figure}{did_you_mean(figure, figures)}")
                step, value = figures[figure]
                if value is None or not math.isfinite(value):
                    said = "null" if value is None else value
                    raise VlpipeError(f"scores.{name}: {figure} of {step} is {said}")
            found[name] = statistics.fmean(figures[figure][1] for figure in wanted)
        return {MEAN: statistics.fmean(found.values()), **found}


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Returns the mean, and half of its 95 % interval by Student's t; null with one value."""
    mean, num = statistics.fmean(values), len(values)
    return mean, T[min(num - 2, len(T) - 1)] * statistics.stdev(values) / num**0.5 if num > 1 else None


def page(ranked: Mapping[str, Sequence[Any]]) -> str:
    """Returns table.md. ranked: entry -> scores of each run; the best entry first, the runs in one order."""
    names = list(next(iter(ranked.values()))[0])
    places = count(1)
    scores = [
        [str(next(places)), entry, *(_shown(*interval([of[name] for of in runs])) for name in names)]
        for entry, runs in ranked.items()
    ]
    num_runs = len(next(iter(ranked.values())))
    above = [
        [entry, *("" if entry == other else str(num_above(runs, ranked[other])) for other in ranked)]
        for entry, runs in ranked.items()
    ]
    return (
        f"Mean of {num_runs} run(s) and half of its 95 % interval.\n\n"
        + _table(["", "entry", *names], scores)
        + f"\nRuns of {num_runs} in which the entry of the line has a higher mean than that of the column.\n\n"
        + _table(["", *ranked], above)
    )


def num_above(runs: Sequence[Scores], others: Sequence[Scores]) -> int:
    """Returns in how many runs the mean score is above that of the other's same run."""
    return sum(one[MEAN] > other[MEAN] for one, other in zip(runs, others, strict=True))


def _shown(mean: float, half: float | None) -> str:
    return f"{mean:.3f}" + ("" if half is None else f" ± {half:.3f}")


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---"] * len(head)
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, rule, *lines))
