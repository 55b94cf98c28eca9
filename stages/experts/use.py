"""How evenly the experts of a language model are used on held-out texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import GatherStage, Job, Stage
from vlpipe.stages.common.batches import batch_size_problems, fixed_batches
from vlpipe.stages.common.row import RESULTS, TEXTS
from vlpipe.stages.common.texts import texts_of


@dataclass(frozen=True, kw_only=True)
class ExpertUse(GatherStage):
    """Emits RESULTS, means over batches of texts of `source`: `busiest`, the largest share of tokens by first choice of an
    expert in any layer, and `dropped`, the share of choices without a place, mean over layers.

    With E evenly used experts, `busiest` is 1 / E. For models with layers of `models/experts` that write texts without an
    image. max_text_length: tokens, start and end included; longer ones are cut.
    """

    NAME: ClassVar[str] = "experts.use:ExpertUse"
    ROWS_ARE: ClassVar[str] = "figures"
    TORCH: ClassVar[bool] = True

    model: Weights
    source: str = "human"
    batch_size: int = 64
    max_text_length: int = 30

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "experts.use", texts=TEXTS)
        return RESULTS

    def preflight(self) -> list[str]:
        return batch_size_problems(self.batch_size)

    def preflight_after(self, stages: Mapping[str, Stage]) -> list[str]:
        from vlpipe.models.interface.capabilities import GeneratesAlone
        from vlpipe.stages.common.model import capability_problems

        return capability_problems(self.model, stages, [GeneratesAlone])

    def run(self, job: Job) -> None:
        import torch

        from vlpipe.models.experts.layer import experts_of
        from vlpipe.models.interface.batch import Stream
        from vlpipe.models.interface.capabilities import GeneratesAlone
        from vlpipe.stages.common.model import load

        model = load(self.model, self.max_text_length, [GeneratesAlone])
        layers = list(experts_of(model.model).values())
        if not layers:
            raise VlpipeError(f"experts.use: {type(model.model).__name__} has no layer of experts")
        busiest, dropped, num = 0.0, 0.0, 0
        for batch, num_real in fixed_batches(texts_of(job.inputs, self.source), self.batch_size):
            ids, mask = model.tokenizer.encode(batch[:num_real], self.max_text_length)
            longest = int(mask.sum(1).max())  # places of experts are counted with padding
            text = Stream(ids[:, :longest], mask[:, :longest].bool())
            with torch.inference_mode():
                _ = model.outputs(text=text).decoder_hidden
            used = [one.latest for one in layers if one.latest is not None]
            busiest += max(float(one.busiest) for one in used)
            dropped += sum(float(one.dropped) for one in used) / len(used)
            num += 1
        if not num:
            raise VlpipeError(f"experts.use: no text of source {self.source!r}")
        values = {"busiest": busiest / num, "dropped": dropped / num}
        rows = [{"name": name, "value": value, "num_rows": num} for name, value in values.items()]
        job.emit(pa.Table.from_pylist(rows, RESULTS))
