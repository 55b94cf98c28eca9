"""Measures whether an alignment of words and regions finds the regions that the words name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import GatherStage, Job, Stage
from vlpipe.stages.common.model import capability_problems
from vlpipe.stages.common.row import RESULTS

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class RegionTransport(GatherStage):
    """Emits RESULTS, fractions from 0 to 1: `mass`, `mass_uniform` and `mass_se`.

    mass: of what the optimal transport plan (`word_region:WordRegion`) moves from a word, the share that lies on the region
    that it names. mass_uniform: the same for a plan that spreads each word evenly over the regions. mass_se: standard error
    of mass. num_rows: words.

    classes: names of the detector's classes, in order. words: class -> the words that name it, each a single token of the
    model's vocabulary. A class counts in images of two regions or more, of which one has it, if the text has one of its
    words, once. alignment: parameters of `WordRegion`, beside `image`. streams: parameters of makers. Samples that do not
    fill a last batch are left out. Raises VlpipeError if no word can be measured.
    """

    NAME: ClassVar[str] = "evaluate.matching.region_transport:RegionTransport"
    ROWS_ARE: ClassVar[str] = "figures"
    TORCH: ClassVar[bool] = True

    model: Weights
    classes: tuple[str, ...]
    words: dict[str, list[str]]
    alignment: dict[str, Any] = field(default_factory=dict)
    streams: dict[str, dict[str, Any]] = field(default_factory=dict)
    batch_size: Annotated[int, Field(ge=1)] = 64

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "evaluate.matching.region_transport", id=pa.string())
        return RESULTS

    def preflight(self) -> list[str]:
        if unknown := [name for name in self.words if name not in self.classes]:
            return [f"words: {unknown[0]!r} is not in `classes`: {', '.join(self.classes)}"]
        return []

    def preflight_after(self, stages: Mapping[str, Stage]) -> list[str]:
        from vlpipe.models.interface.capabilities import Fuses

        return capability_problems(self.model, stages, [Fuses])

    def run(self, job: Job) -> None:
        import torch

        from vlpipe.models.interface.capabilities import Fuses
        from vlpipe.models.interface.outputs import Outputs
        from vlpipe.models.objectives.word_region import WordRegion
        from vlpipe.stages.common.model import load
        from vlpipe.stages.evaluate.masked import ids_of
        from vlpipe.stages.train.build import build_makers
        from vlpipe.stages.train.loader import Loader
        from vlpipe.stages.train.recipe import Recipe

        loaded = load(self.model, needs=[Fuses])
        recipe = Recipe(
            objectives=[], streams=self.streams, batch_size=self.batch_size, shuffle_window=self.batch_size
        )
        makers = build_makers(recipe, loaded.model, loaded.tokenizer)
        loader = Loader(job.inputs, recipe, loaded.tokenizer, makers, {})
        num_batches = loader.samples_per_epoch // self.batch_size
        named = {
            self.classes.index(name): ids_of(some, loaded.tokenizer) for name, some in self.words.items()
        }
        alignment = WordRegion(image="regions", **self.alignment)
        found: list[Tensor] = []
        with loader.batches(0, device=loaded.device) as batches, torch.inference_mode():
            for batch in islice(batches, num_batches):
                out = Outputs(loaded.model, batch, grad=False)
                text, regions = out.stream("text"), out.stream("regions")
                assert text.mask is not None
                plan = alignment.plan(out)[:, -regions.data.shape[1] :]
                for label, ids in named.items():
                    said = torch.isin(text.data, ids.to(text.data.device)) & text.mask
                    found.append(shares(plan, said, regions.extra["obj"] == label, regions.mask).cpu())
        each = torch.cat(found) if found else torch.zeros(0, 2)
        if not len(each):
            raise VlpipeError(
                "evaluate.matching.region_transport: no text has a word of `words` that names one of several regions"
            )
        mass, uniform = each.double().mean(0).tolist()
        figures = {
            "mass": mass,
            "mass_uniform": uniform,
            "mass_se": float(each[:, 0].double().std(correction=0) / len(each) ** 0.5),
        }
        rows = [{"name": name, "value": value, "num_rows": len(each)} for name, value in figures.items()]
        job.emit(pa.Table.from_pylist(rows, RESULTS))


def shares(plan: Tensor, said: Tensor, is_named: Tensor, mask: Tensor | None) -> Tensor:
    """Returns (V, 2) of the V rows that count: the share of a word's mass on the region it names, and of an even plan's.

    plan: (B, R, L), from words to regions. said: (B, L) bool, words of a class. is_named: (B, R) bool, regions of it. mask:
    (B, R) bool, regions that are there; None for all.
    """
    import torch

    there = torch.ones_like(is_named) if mask is None else mask
    named = is_named & there
    counts = (said.sum(1) == 1) & (named.sum(1) == 1) & (there.sum(1) > 1)
    moved = (plan * said[:, None]).sum(2)[counts]
    on_named = (moved * named[counts]).sum(1) / moved.sum(1)
    return torch.stack([on_named, 1 / there[counts].sum(1)], dim=1)
