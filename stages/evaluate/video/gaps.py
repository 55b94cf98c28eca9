"""How a difference between two arms changes along an axis: MIL-NCE with one candidate or five, as narration gets later."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import GatherStage, Job
from vlpipe.stages.common.row import RESULTS

Share = tuple[float, int]  # value, and of how many items


@dataclass(frozen=True, kw_only=True)
class Gaps(GatherStage):
    """Emits RESULTS `gap/LABEL`: the share `metric` of arm `more` minus that of arm `fewer`, per label of the other axis;
    `growth`, the gap of the last label minus that of the first, in numerical order; `growth/se`: in standard errors.

    Inputs: evaluation steps named BASE@LABEL-LABEL, as a `matrix` names them, or BASE@LABEL-LABEL-LABEL-..., of which
    labels `along` and `arm`, counted from 0, count. Errors are those of shares of independent items; where the arms were
    evaluated on the same items, the true ones are smaller. Raises VlpipeError for a missing or doubled arm or metric.
    """

    NAME: ClassVar[str] = "evaluate.video.gaps:Gaps"
    ROWS_ARE: ClassVar[str] = "differences of figures"

    metric: str
    more: str
    fewer: str
    along: Annotated[int, Field(ge=0)] = 0
    arm: Annotated[int, Field(ge=0)] = 1

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "evaluate.video.gaps", name=pa.string(), value=pa.float64())
        return RESULTS

    def names_in_key(self, names: Sequence[str]) -> Sequence[str]:
        return names

    def run(self, job: Job) -> None:
        found: dict[str, dict[str, Share]] = {}
        for data in job.inputs:
            labels = data.name.partition("@")[2].split("-")
            if max(self.along, self.arm) >= len(labels):
                raise VlpipeError(
                    f"evaluate.video.gaps: {data.name} has no labels {self.along} and {self.arm}"
                )
            of_label = found.setdefault(labels[self.along], {})
            if labels[self.arm] in of_label:
                raise VlpipeError(f"evaluate.video.gaps: two inputs are of {self._place(labels)}")
            rows = [row for row in data.table().to_pylist() if row["name"] == self.metric]
            if len(rows) != 1 or rows[0]["value"] is None:
                raise VlpipeError(f"evaluate.video.gaps: {data.name} has {len(rows)} values of {self.metric}")
            of_label[labels[self.arm]] = rows[0]["value"], rows[0]["num_rows"]
        rows = []
        gaps: list[tuple[float, float]] = []  # value, variance
        for label in sorted(found, key=_number):
            lacking = [arm for arm in (self.more, self.fewer) if arm not in found[label]]
            if lacking:
                raise VlpipeError(
                    f"evaluate.video.gaps: there is no input with labels {label} and {lacking[0]}"
                )
            (more, num), (fewer, num_fewer) = (found[label][arm] for arm in (self.more, self.fewer))
            gaps.append((more - fewer, _variance(more, num) + _variance(fewer, num_fewer)))
            rows.append({"name": f"gap/{label}", "value": more - fewer, "num_rows": num})
        growth, error = gaps[-1][0] - gaps[0][0], math.sqrt(gaps[-1][1] + gaps[0][1])
        num = rows[0]["num_rows"]
        rows.append({"name": "growth", "value": growth, "num_rows": num})
        rows.append({"name": "growth/se", "value": growth / error if error else 0.0, "num_rows": num})
        job.emit(pa.Table.from_pylist(rows, RESULTS))

    def _place(self, labels: Sequence[str]) -> str:
        return f"labels {labels[self.along]} and {labels[self.arm]}"


def _number(label: str) -> tuple[float, str]:
    """Returns the order of labels such as 0, 2, 10 and 0_5 (0.5); others come last."""
    value = label.replace("_", ".")
    return (float(value) if re.fullmatch(r"\d+(\.\d+)?", value) else math.inf), label


def _variance(share: float, num: int) -> float:
    return share * (1 - share) / num
