"""A palette of colours by k-means: iGPT's codes of pixels. Chen et al. 2020, section 3.2: 512 colours of 9 bits."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from vlpipe.pipeline.stage import Job
from vlpipe.stages.image_codes.patches import FitPatchCodebook


@dataclass(frozen=True, kw_only=True)
class FitPalette(FitPatchCodebook):
    """Fits `num_codes` colours to a sample of the pixels of all images, which are resized to `image_size` before.

    As `FitPatchCodebook` with patches of one pixel; `image_codes.codes` writes the codes. The artifacts also have a
    `preprocessor_config.json` with the same colours from -1 to 1, with which transformers' ImageGPTImageProcessor gives
    the same codes of images of that size.
    """

    NAME: ClassVar[str] = "image_codes.palette:FitPalette"

    num_codes: Annotated[int, Field(ge=2)] = 512
    patch_size: Annotated[int, Field(ge=1, le=1)] = 1
    image_size: Annotated[int, Field(ge=1)] = 32

    def run(self, job: Job) -> None:
        from vlpipe.models import folder

        super().run(job)
        colours = folder.load(job.artifacts).codebook.centroids.detach()
        side = self.image_size
        config = {
            "image_processor_type": "ImageGPTImageProcessor",
            "clusters": (2 * colours - 1).tolist(),
            "do_color_quantize": True,
            "do_resize": True,
            "size": {"height": side, "width": side},
            "resample": 3,  # bicubic, as here
        }
        Path(job.artifacts, "preprocessor_config.json").write_text(
            json.dumps(config) + "\n", encoding="utf-8"
        )
