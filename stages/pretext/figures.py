"""The losses and diagnostics of a model's own task on held-out rows."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import GatherStage, Job
from vlpipe.stages.common.row import RESULTS


@dataclass(frozen=True, kw_only=True)
class TaskFigures(GatherStage):
    """Emits RESULTS: the mean of each loss and diagnostic of `objectives`, as a training without a step would log them.

    objectives, views, streams: as in `train.train`; what an objective learns itself starts anew. Rows that do not fill a
    last batch are left out; num_rows: those that count.
    """

    NAME: ClassVar[str] = "pretext.figures:TaskFigures"
    ROWS_ARE: ClassVar[str] = "figures"
    TORCH: ClassVar[bool] = True

    model: Weights
    objectives: list[str | dict[str, Any]]
    views: dict[str, list[str | dict[str, Any]]] = field(default_factory=dict)
    streams: dict[str, dict[str, Any]] = field(default_factory=dict)
    batch_size: Annotated[int, Field(ge=1)] = 64
    seed: int = 0

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "pretext.figures", id=pa.string(), image=pa.binary())
        return RESULTS

    def run(self, job: Job) -> None:
        import torch

        from vlpipe.models.interface.objective import Term
        from vlpipe.stages.common.model import load
        from vlpipe.stages.held_out.batches import held_out_batches
        from vlpipe.stages.train.build import Net, build_objectives
        from vlpipe.stages.train.recipe import Recipe

        loaded = load(self.model)
        net = Net(loaded.model, build_objectives(Recipe(objectives=self.objectives, views=self.views))).eval()
        num = 0
        totals: dict[str, float] = defaultdict(float)
        counts: dict[str, float] = defaultdict(float)
        made = held_out_batches(
            job,
            loaded,
            "pretext.figures",
            batch_size=self.batch_size,
            streams=self.streams,
            views=self.views,
            seed=self.seed,
        )
        with made as batches, torch.inference_mode():
            for batch in batches:
                num += self.batch_size
                for name, value in net(batch).items():
                    term = value if isinstance(value, Term) else Term(value, 1.0)
                    totals[name] += float(term.total)
                    counts[name] += float(term.count)
        rows = [{"name": n, "value": totals[n] / max(counts[n], 1e-12), "num_rows": num} for n in totals]
        job.emit(pa.Table.from_pylist(rows, RESULTS))
