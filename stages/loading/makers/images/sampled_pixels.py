"""The picture of a row with a random part of the places of its feature map (Pixel-BERT's pretraining).

Huang et al. 2020, https://arxiv.org/abs/2004.00849, section 3.4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vlpipe.stages.loading.makers.base import EXTRA, Item
from vlpipe.stages.loading.makers.image import Image
from vlpipe.stages.loading.rows import Row


@dataclass(frozen=True, kw_only=True)
class SampledPixels(Image):
    """As `Image`; extra["keep"] (B, num): the places that the model sees, in ascending order, drawn anew for each sample.

    stride: side in pixels of the picture of one place of the model's feature map. Only training steps name this maker, so
    models see all places elsewhere. The places of a sample are the same in all views.
    """

    num: int
    stride: int

    def __post_init__(self) -> None:
        if not 1 <= self.num <= self.num_places:
            raise ValueError(
                f"sampled_pixels: num must be from 1 to the {self.num_places} places of {self.size} pixels at stride "
                f"{self.stride}, got {self.num}"
            )

    @property
    def num_places(self) -> int:
        return (self.size // self.stride) ** 2

    def __call__(self, row: Row, text: str, rng: np.random.Generator) -> Item:
        item = super().__call__(row, text, rng)
        return {**item, f"{EXTRA}keep": np.sort(rng.permutation(self.num_places)[: self.num])}
