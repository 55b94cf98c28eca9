"""The input of the report page: one record per step, filled from manifests and receipts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlpipe.pipeline.shard import Reject
from vlpipe.pipeline.stage import Dataset


@dataclass(frozen=True, kw_only=True, slots=True)
class StepView:
    """One step.

    rejects: "kind:why" -> number of rows, as in receipts. counts: the stage's own counts, such as a filter's
    `fails:min_side`. inputs: names of the steps it reads rows from. spent: of a step that runs a model, summed over those
    shards that measured it: `seconds` in all, of them `waiting` for input and `computing`, and `rows`; empty for others.
    alarms: sentences about what deserves a look. dataset: its output shards, None if there are none yet.
    rejects_sample: some of its rejects, preferably all of those in a few evenly spaced shards including the first, because
    the gallery reads the first rows of such shards.
    """

    name: str
    use: str
    status: str  # done | running | waiting | failed
    rows_in: int = 0
    rows_out: int = 0
    rejects: Mapping[str, int] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    seconds: float | None = None
    spent: Mapping[str, float] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    inputs: Sequence[str] = ()
    dataset: Dataset | None = None
    alarms: Sequence[str] = ()
    rejects_sample: Sequence[Reject] = ()

    @property
    def num_rejected(self) -> int:
        return sum(self.rejects.values())

    def num_of(self, kind: str) -> int:
        return sum(n for code, n in self.rejects.items() if code.startswith(f"{kind}:"))

    @property
    def drops_rows(self) -> bool:
        """True if each input row is either output or rejected; False if the step writes rows of its own."""
        return self.rows_in > 0 and self.rows_in == self.rows_out + self.num_rejected


@dataclass(frozen=True, kw_only=True, slots=True)
class RunView:
    """A workflow's run, with its steps in file order.

    criteria: what the workflow says that a run must show (`x-criteria`): (STEP.FIGURE, `above` or `below`, another figure or
    a number).
    """

    title: str
    description: str
    steps: Sequence[StepView]
    criteria: Sequence[tuple[str, str, str | float]] = ()

    def step(self, name: str) -> StepView | None:
        return next((step for step in self.steps if step.name == name), None)
