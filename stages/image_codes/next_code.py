"""How well a model predicts the next code of held-out images."""

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
from vlpipe.stages.common.row import RESULTS


@dataclass(frozen=True, kw_only=True)
class NextCodeAccuracy(GatherStage):
    """Emits RESULTS over the codes of all images: `next_code_accuracy`, the share of codes that the model predicts from
    those before them; `code_prior`, of the commonest; `copied`, of those that equal the code before; `next_code_nats` per
    code. num_rows: codes. Images that do not fill a last batch are left out.

    streams: parameters of makers. A model that reads texts sees one of the row's; shuffled: that of the next image of the
    batch instead.
    """

    NAME: ClassVar[str] = "image_codes.next_code:NextCodeAccuracy"
    ROWS_ARE: ClassVar[str] = "figures"
    TORCH: ClassVar[bool] = True

    model: Weights
    streams: dict[str, dict[str, Any]] = field(default_factory=dict)
    batch_size: Annotated[int, Field(ge=1)] = 64
    shuffled: bool = False
    seed: int = 0

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "image_codes.next_code", id=pa.string())
        return RESULTS

    def preflight_after(self, stages: Mapping[str, Stage]) -> list[str]:
        from vlpipe.models.interface.code_capabilities import PredictsNextCodes
        from vlpipe.stages.common.model import capability_problems

        return capability_problems(self.model, stages, [PredictsNextCodes])

    def run(self, job: Job) -> None:
        import torch
        import torch.nn.functional as F

        from vlpipe.models.interface.code_capabilities import PredictsNextCodes
        from vlpipe.models.interface.outputs import Outputs
        from vlpipe.stages.common.model import load
        from vlpipe.stages.held_out.batches import held_out_batches

        loaded = load(self.model, needs=[PredictsNextCodes])
        right, copied, nats, truth = 0, 0, 0.0, Counter[int]()
        made = held_out_batches(
            job,
            loaded,
            "image_codes.next_code",
            batch_size=self.batch_size,
            streams=self.streams,
            texts="images",
            seed=self.seed,
        )
        with made as batches, torch.inference_mode():
            for batch in batches:
                out = Outputs(loaded.model, batch, grad=False)
                if self.shuffled:
                    own = torch.arange(len(batch), device=batch.same.device)
                    out = out.paired({n: own if n == "image" else own.roll(-1) for n in batch.streams})
                codes = out.image_codes
                logits = loaded.model.predict_codes(out.next_code_hidden).float()
                right += int((logits.argmax(2) == codes).sum())
                copied += int((codes[:, 1:] == codes[:, :-1]).sum())
                nats += float(F.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="sum"))
                truth.update(codes.flatten().tolist())
        num = truth.total()
        figures = {
            "next_code_accuracy": right / num,
            "code_prior": max(truth.values()) / num,
            "copied": copied / num,
            "next_code_nats": nats / num,
        }
        rows = [{"name": name, "value": value, "num_rows": num} for name, value in figures.items()]
        job.emit(pa.Table.from_pylist(rows, RESULTS))
