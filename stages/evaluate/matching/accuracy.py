"""Measures how well a model tells matching pairs from wrong ones, under several corruptions of its inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import GatherStage, Job, Stage
from vlpipe.stages.common.model import capability_problems
from vlpipe.stages.common.row import RESULTS


@dataclass(frozen=True, kw_only=True)
class MatchAccuracy(GatherStage):
    """Emits RESULTS, fractions from 0 to 1: `VIEW/accuracy` and `VIEW/prior` of each view.

    accuracy: share of rows whose likelier answer, "match" or "no match", is the truth that the view's corruptor recorded
    (`mismatch:Mismatch`, `image_text.pollute:Pollute`). prior: share of the commoner truth. num_rows: rows.

    views: name -> corruptors, as in `train.train`; all see the same samples, with draws of their own. streams: parameters of
    makers. Samples that do not fill a last batch are left out. Raises VlpipeError if there is no whole batch.
    """

    NAME: ClassVar[str] = "evaluate.matching.accuracy:MatchAccuracy"
    ORDERED: ClassVar[frozenset[str]] = frozenset({"views"})
    ROWS_ARE: ClassVar[str] = "figures"
    TORCH: ClassVar[bool] = True

    model: Weights
    views: dict[str, list[str | dict[str, Any]]]
    streams: dict[str, dict[str, Any]] = field(default_factory=dict)
    batch_size: Annotated[int, Field(ge=2)] = 64
    seed: int = 0

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "evaluate.matching.accuracy", id=pa.string())
        return RESULTS

    def preflight(self) -> list[str]:
        return [] if self.views else ["views: wanted a view and its corruptors, got none"]

    def preflight_after(self, stages: Mapping[str, Stage]) -> list[str]:
        from vlpipe.models.interface.capabilities import Matches

        return capability_problems(self.model, stages, [Matches])

    def run(self, job: Job) -> None:
        import torch

        from vlpipe.models.interface.capabilities import Matches
        from vlpipe.models.interface.outputs import Outputs
        from vlpipe.models.objectives.masked_lm import match_labels
        from vlpipe.stages.common.model import load
        from vlpipe.stages.held_out.batches import held_out_batches

        loaded = load(self.model, needs=[Matches])
        num, right = 0, Counter[str]()
        matching: Counter[str] = Counter()
        made = held_out_batches(
            job,
            loaded,
            "evaluate.matching.accuracy",
            batch_size=self.batch_size,
            streams=self.streams,
            views=self.views,
            seed=self.seed,
        )
        with made as batches, torch.inference_mode():
            for batch in batches:
                num += self.batch_size
                for view in self.views:
                    out = Outputs(loaded.model, batch, grad=False).view(view)
                    truth = match_labels(out.batch)
                    right[view] += int((out.match.argmax(1) == truth).sum())
                    matching[view] += int(truth.sum())
        found = []
        for view in self.views:
            prior = max(matching[view], num - matching[view]) / num
            for name, value in (("accuracy", right[view] / num), ("prior", prior)):
                found.append({"name": f"{view}/{name}", "value": value, "num_rows": num})
        job.emit(pa.Table.from_pylist(found, RESULTS))
