"""Accuracy of a model on the codes of hidden patches of held-out images."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import GatherStage, Job
from vlpipe.stages.common.row import RESULTS

VIEW = "masked"


@dataclass(frozen=True, kw_only=True)
class CodeAccuracy(GatherStage):
    """Emits RESULTS: `code_accuracy`, the share of hidden codes that the model predicts; `code_prior`, of the commonest.

    mask: the corruptors that hide patches, as in a view of `train.train`. streams: parameters of makers. num_rows: hidden
    patches. Images that do not fill a last batch are left out.
    """

    NAME: ClassVar[str] = "image_codes.accuracy:CodeAccuracy"
    ROWS_ARE: ClassVar[str] = "figures"
    TORCH: ClassVar[bool] = True

    model: Weights
    mask: list[str | dict[str, Any]]
    streams: dict[str, dict[str, Any]] = field(default_factory=dict)
    batch_size: Annotated[int, Field(ge=1)] = 64
    seed: int = 0

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "image_codes.accuracy", id=pa.string(), image=pa.binary())
        return RESULTS

    def run(self, job: Job) -> None:
        import torch

        from vlpipe.models.interface.capabilities import FillsCodes
        from vlpipe.models.interface.image_capabilities import HasImageCodes
        from vlpipe.models.interface.outputs import Outputs
        from vlpipe.stages.common.model import load
        from vlpipe.stages.held_out.batches import held_out_batches

        loaded = load(self.model, needs=[FillsCodes, HasImageCodes])
        right, truth = 0, Counter[int]()
        made = held_out_batches(
            job,
            loaded,
            "image_codes.accuracy",
            batch_size=self.batch_size,
            streams=self.streams,
            views={VIEW: self.mask},
            seed=self.seed,
        )
        with made as batches, torch.inference_mode():
            for batch in batches:
                out = Outputs(loaded.model, batch, grad=False).view(VIEW)
                hidden = out.stream("image").target["masked"]
                codes = out.image_codes[hidden]
                right += int((loaded.model.predict_codes(out.code_hidden[hidden]).argmax(1) == codes).sum())
                truth.update(codes.tolist())
        num = truth.total()
        figures = {"code_accuracy": right / num, "code_prior": max(truth.values()) / num}
        rows = [{"name": name, "value": value, "num_rows": num} for name, value in figures.items()]
        job.emit(pa.Table.from_pylist(rows, RESULTS))
