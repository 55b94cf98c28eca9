"""Measures whether a model tells a sample's text from false rewrites of it, with its image and with another one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import GatherStage, Job
from vlpipe.stages.common.row import RESULTS

if TYPE_CHECKING:
    from torch import Tensor

    from vlpipe.models.interface.outputs import Outputs


@dataclass(frozen=True, kw_only=True)
class VariantAccuracy(GatherStage):
    """Emits `variants/true` and `variants/shuffled` (RESULTS): how often a positive text scores best among all variants
    of a sample, with its image and with that of the next sample of the batch; and `variants/chance`, of a draw.

    streams: parameters of makers, such as {variants: {negatives: {rewrites: 3}}} (`language.variants:Variants`). The model
    has `variant_scores` (UNIMO). Samples without a negative are not counted; those that do not fill a last batch are left
    out.
    """

    NAME: ClassVar[str] = "evaluate.written.variants:VariantAccuracy"
    VERSION: ClassVar[int] = 2  # 2: ties count as wrong
    ROWS_ARE: ClassVar[str] = "figures"
    TORCH: ClassVar[bool] = True

    model: Weights
    streams: dict[str, dict[str, Any]] = field(default_factory=dict)
    batch_size: Annotated[int, Field(ge=2)] = 64
    seed: int = 0

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "evaluate.written.variants", id=pa.string())
        return RESULTS

    def run(self, job: Job) -> None:
        import torch

        from vlpipe.models.interface.capabilities import need as need_of_model
        from vlpipe.models.interface.outputs import Outputs
        from vlpipe.models.objectives.pairs.variants import ScoresVariants
        from vlpipe.stages.common.model import load
        from vlpipe.stages.evaluate.masked import PARTNERS, partnered
        from vlpipe.stages.held_out.batches import held_out_batches

        loaded = load(self.model)
        need_of_model(loaded.model, [ScoresVariants], "evaluate.written.variants")
        right, chance, num = dict.fromkeys(PARTNERS, 0), 0.0, 0
        made = held_out_batches(
            job,
            loaded,
            "evaluate.written.variants",
            batch_size=self.batch_size,
            streams=self.streams,
            seed=self.seed,
        )
        with made as batches, torch.inference_mode():
            for batch in batches:
                out = Outputs(loaded.model, batch, grad=False)
                for partner in PARTNERS:
                    hits, chances = best_is_positive(partnered(out, "variants", partner))
                    right[partner] += int(hits.sum())
                num, chance = num + len(chances), chance + float(chances.sum())
        if not num:
            raise VlpipeError(
                "evaluate.written.variants: no sample has a negative; set streams.variants.negatives"
            )
        figures = {f"variants/{name}": value / num for name, value in right.items()}
        figures["variants/chance"] = chance / num
        rows_of = [{"name": name, "value": value, "num_rows": num} for name, value in figures.items()]
        job.emit(pa.Table.from_pylist(rows_of, RESULTS))


def best_is_positive(out: Outputs) -> tuple[Tensor, Tensor]:
    """Returns (whether a positive variant is better than each negative one, share of positives), of the samples with a
    negative variant. A tie counts as wrong."""
    import torch

    extra = out.stream("variants").extra
    there, positive = extra["there"], extra["positive"] & extra["there"]
    counted = (there & ~positive).any(1)
    true, false = (
        out.variant_scores.masked_fill(~which, -torch.inf).amax(1) for which in (positive, there & ~positive)
    )
    share = positive.sum(1) / there.sum(1)
    return (true > false)[counted], share[counted]
