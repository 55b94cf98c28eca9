"""How much of held-out images is left when they are codes and are painted from them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import Reject, need
from vlpipe.pipeline.stage import GatherStage, Job, Stage
from vlpipe.stages.common.batches import Pixels, batch_size_problems, encode_images, read_images
from vlpipe.stages.common.row import RESULTS

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Reconstruction(GatherStage):
    """Emits RESULTS of a discrete VAE: `mse`, of pixels from 0 to 1, between an image and what its likeliest codes paint;
    `mse_flat`, the same of the image's mean colour; `codes_used`; `code_perplexity`, exp of the entropy in nats of the codes
    of all places; `code_prior`, the share of the commonest code. num_rows: images.
    """

    NAME: ClassVar[str] = "image_codes.reconstruction:Reconstruction"
    ROWS_ARE: ClassVar[str] = "figures"
    TORCH: ClassVar[bool] = True

    model: Weights
    batch_size: int = 64

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "image_codes.reconstruction", id=pa.string(), image=pa.binary())
        return RESULTS

    def preflight(self) -> list[str]:
        return batch_size_problems(self.batch_size)

    def preflight_after(self, stages: Mapping[str, Stage]) -> list[str]:
        from vlpipe.models.interface.code_capabilities import PaintsCodes
        from vlpipe.models.interface.image_capabilities import HasImageCodes
        from vlpipe.stages.common.model import capability_problems

        return capability_problems(self.model, stages, [HasImageCodes, PaintsCodes])

    def run(self, job: Job) -> None:
        import torch

        from vlpipe.models.codebooks.base import MEAN, STD
        from vlpipe.models.interface.batch import Stream
        from vlpipe.models.interface.code_capabilities import PaintsCodes
        from vlpipe.models.interface.image_capabilities import HasImageCodes
        from vlpipe.stages.common.model import load

        model = load(self.model, needs=[HasImageCodes, PaintsCodes])
        mean, std = (torch.tensor(v, device=model.device).view(3, 1, 1) for v in (MEAN, STD))

        @torch.inference_mode()
        def judged(pixels: torch.Tensor) -> torch.Tensor:
            """(B, 2 + N): both errors, and the codes."""
            true = pixels.to(model.device) * std + mean
            codes: torch.Tensor = model.outputs(image=Stream(pixels)).image_codes
            guesses = (model.model.paint(codes), true.mean((2, 3), keepdim=True))
            errors = [(guess - true).square().mean((1, 2, 3)).double() for guess in guesses]
            return torch.cat([torch.stack(errors, 1), codes.double()], 1).cpu()

        rejects: list[Reject] = []
        images = self._images(job, model.image_size, rejects)
        found = [row.numpy() for _, row in encode_images(images, judged, self.batch_size)]
        job.reject(rejects)
        if not found:
            raise VlpipeError("image_codes.reconstruction: no image can be decoded")
        table = np.stack(found)
        shares = np.bincount(table[:, 2:].astype(np.int64).ravel()) / table[:, 2:].size
        shares = shares[shares > 0]
        figures = {
            "mse": float(table[:, 0].mean()),
            "mse_flat": float(table[:, 1].mean()),
            "codes_used": float(len(shares)),
            "code_perplexity": math.exp(-float((shares * np.log(shares)).sum())),
            "code_prior": float(shares.max()),
        }
        rows = [{"name": name, "value": value, "num_rows": len(table)} for name, value in figures.items()]
        job.emit(pa.Table.from_pylist(rows, RESULTS))

    def _images(self, job: Job, size: int, rejects: list[Reject]) -> Iterator[tuple[int, Pixels]]:
        for data in job.inputs:
            for table in data.batches(["id"], ["image"]):
                yield from read_images(table, size, rejects)
