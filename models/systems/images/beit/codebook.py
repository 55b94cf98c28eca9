"""DALL-E's image codebook: the discrete codes of an image, which other systems predict. Ramesh et al. 2021, https://arxiv.org/abs/2102.12092."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vlpipe.models.build import build
from vlpipe.models.codebooks.base import Codebook
from vlpipe.models.interface.model import Model
from vlpipe.models.interface.outputs import Outputs

BELOW = "vlpipe.models.codebooks"


class ImageCodebook(Model):
    """codebook: {use: "dalle:DalleEncoder"}, the default, or another class below `models.codebooks`, and its parameters.

    `load` reads transformers' FlavaImageCodebook. A codebook is a part of a system by `init_parts: [{weights: ..., part:
    codebook}]`.
    """

    STREAMS = {"image": "image:Image"}  # noqa: RUF012
    FORMATS = ("flava_image_codebook",)

    def __init__(self, *, codebook: Mapping[str, Any] | None = None, image_size: int = 112) -> None:
        super().__init__()
        self.codebook: Codebook = build(codebook or {"use": "dalle:DalleEncoder"}, BELOW)
        if image_size % self.codebook.patch_size:
            raise ValueError(
                f"model: image_size must be a multiple of the codebook's {self.codebook.patch_size} pixels, got {image_size}"
            )

    def image_codes(self, out: Outputs) -> Tensor:
        """(B, N) int64: the codes of the places, row by row."""
        return self.codebook(out.stream("image").data)
