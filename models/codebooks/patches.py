"""A codebook of patches: the code of a place is the patch that is nearest to its pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlpipe.models.blocks.patches import cut_patches
from vlpipe.models.codebooks.base import Codebook


class PatchCentroids(Codebook):
    """The nearest of `num_codes` patches, by squared distance of pixels from 0 to 1; `image_codes.patches` fits them."""

    def __init__(self, *, num_codes: int, patch_size: int) -> None:
        super().__init__()
        self.num_codes, self.patch_size = num_codes, patch_size
        self.centroids = nn.Parameter(torch.zeros(num_codes, 3 * patch_size**2))
        self.freeze()

    def codes(self, pixels: Tensor) -> Tensor:
        patches = cut_patches(pixels, self.patch_size)
        return (self.centroids.square().sum(1) - 2 * patches @ self.centroids.t()).argmin(2)
