"""The shares of colours among the pixels of a data set, by which colorization lets rare ones count more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.shard import Reject, need
from vlpipe.pipeline.stage import GatherStage, Job, Stage
from vlpipe.stages.common.batches import read_images
from vlpipe.stages.common.row import RESULTS


@dataclass(frozen=True, kw_only=True)
class FitColourPrior(GatherStage):
    """Counts the bins of the ab plane of all pixels. Artifacts: a `ColourPrior`, whose part `bins` a `Colorization` takes.

    image_size: to which pictures are resized first. smooth: deviation, in the units of ab, of a Gaussian over the bins
    (Zhang et al. 2016, section 2.2). Emits RESULTS: `colour_prior`, the share of the commonest bin; `balanced_prior`, the
    largest share of a bin among weights, which is what one answer for all pixels gets at most of `colour_balanced`. Images
    that cannot be decoded are rejected.
    """

    NAME: ClassVar[str] = "pretext.colour_prior:FitColourPrior"
    ROWS_ARE: ClassVar[str] = "figures"
    TORCH: ClassVar[bool] = True

    image_size: Annotated[int, Field(ge=1)] = 64
    smooth: Annotated[float, Field(gt=0)] = 5.0

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "pretext.colour_prior", id=pa.string(), image=pa.binary())
        return RESULTS

    def stand_in(self, stages: Mapping[str, Stage]) -> Any:
        """Returns the model that this step makes, without its weights."""
        from vlpipe.models.systems.pretext.colorization import ColourPrior
        from vlpipe.models.weightless import weightless

        with weightless():
            return ColourPrior()

    def run(self, job: Job) -> None:
        import torch

        from vlpipe.models import folder
        from vlpipe.models.blocks.colour.lab import Lab
        from vlpipe.models.systems.pretext.colorization import ColourPrior

        model, lab = ColourPrior(), Lab()
        bins = model.bins
        counts = torch.zeros(bins.num_bins, dtype=torch.float64)
        rejects: list[Reject] = []
        for data in job.inputs:
            for table in data.batches(["id"], ["image"]):
                for _, pixels in read_images(table, self.image_size, rejects):
                    ab = lab(torch.as_tensor(pixels)[None])[0, 1:].flatten(1).t()
                    counts += torch.bincount(bins.nearest(ab), minlength=bins.num_bins)
        job.reject(rejects)
        if not counts.any():
            raise VlpipeError("pretext.colour_prior: there is no image to count colours of")
        share = counts / counts.sum()
        far = torch.cdist(bins.points, bins.points).double()
        kernel = (-far.square() / (2 * self.smooth**2)).exp()
        bins.prior.data.copy_((kernel / kernel.sum(1, keepdim=True)).t() @ share)
        folder.save(model, job.artifacts)
        weighted = share * bins.weights().double()
        figures = {
            "colour_prior": float(share.max()),
            "balanced_prior": float(weighted.max() / weighted.sum()),
        }
        num = int(counts.sum())
        rows = [{"name": name, "value": value, "num_rows": num} for name, value in figures.items()]
        job.emit(pa.Table.from_pylist(rows, RESULTS))
