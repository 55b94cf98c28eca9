"""Compares experiment arms over several seeds: mean and standard deviation of each metric, one row each."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import ClassVar

import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import Dataset, GatherStage, Job
from vlpipe.stages.common.row import RESULTS


@dataclass(frozen=True, kw_only=True)
class Compare(GatherStage):
    """Emits RESULTS: the mean of each metric over the seeds of each arm, and its standard deviation.

    Inputs: evaluation steps. arms: name of an arm -> its input steps, one per seed. only: metrics to compare (empty: all of
    the arm's first step). Rows: `ARM/METRIC mean` and `ARM/METRIC sd` (sample standard deviation; null with one seed);
    num_rows is the number of seeds with a value, which are the ones that count.
    """

    ROWS_ARE: ClassVar[str] = "means of figures over arms"

    arms: dict[str, list[str]]
    only: tuple[str, ...] = field(default=())

    NAME: ClassVar[str] = "evaluate.compare:Compare"

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "Compare", name=pa.string(), value=pa.float64())
        return RESULTS

    def run(self, job: Job) -> None:
        by_name = {data.name: data for data in job.inputs}
        rows: list[tuple[str, float | None, int]] = []
        for arm, steps in self.arms.items():
            missing = [step for step in steps if step not in by_name]
            if missing:
                raise VlpipeError(
                    f"arms.{arm}: there is no input {', '.join(missing)}; the inputs of this step are "
                    f"{', '.join(sorted(by_name))}"
                )
            figures = [_figures(by_name[step]) for step in steps]
            for name in [n for n in figures[0] if not self.only or n in self.only]:
                values = [f[name] for f in figures if f.get(name) is not None]
                rows.append((f"{arm}/{name} mean", statistics.fmean(values) if values else None, len(values)))
                rows.append(
                    (f"{arm}/{name} sd", statistics.stdev(values) if len(values) > 1 else None, len(values))
                )
        job.emit(pa.Table.from_arrays([pa.array(c) for c in zip(*rows, strict=True)], schema=RESULTS))


def _figures(data: Dataset) -> dict[str, float]:
    return {row["name"]: row["value"] for row in data.table().to_pylist()}
