"""MAE's reconstruction loss: squared error of pixels of the hidden patches. He et al. 2022, https://arxiv.org/abs/2111.06377."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vlpipe.models.blocks.patches import cut_patches
from vlpipe.models.interface.batch import Batch
from vlpipe.models.interface.capabilities import ReconstructsPixels
from vlpipe.models.interface.objective import Objective, Term
from vlpipe.models.interface.outputs import Outputs


class PixelMse(Objective):
    """`pixel_mse`: mean over the pixels of a patch, then over patches.

    The stream `image` has target["masked"]. normalise: each patch of the target to mean 0 and deviation 1 (the paper's
    best). all_patches: also those that the encoder saw (the paper's ablation).
    """

    LOSSES = ("pixel_mse",)
    NEEDS = (ReconstructsPixels,)

    def __init__(self, *, normalise: bool = True, all_patches: bool = False) -> None:
        super().__init__()
        self.normalise, self.all_patches = normalise, all_patches

    def counts(self, batch: Batch) -> Mapping[str, Tensor | float]:
        masked = batch.stream("image").target["masked"]
        return {"pixel_mse": masked.numel() if self.all_patches else masked.sum()}

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        image = out.stream("image")
        predicted = out.pixel_prediction.float()
        patch = round((predicted.shape[2] // 3) ** 0.5)
        wanted = pixels_of_patches(image.data.float(), patch)
        if self.normalise:
            deviation = (wanted.var(dim=-1, keepdim=True) + 1e-6) ** 0.5
            wanted = (wanted - wanted.mean(dim=-1, keepdim=True)) / deviation
        each = (predicted - wanted).square().mean(dim=-1)  # (B, N)
        masked = image.target["masked"]
        if self.all_patches:
            return {"pixel_mse": Term(each.sum(), each.numel())}
        return {"pixel_mse": Term((each * masked).sum(), masked.sum())}


def pixels_of_patches(pixels: Tensor, patch: int) -> Tensor:
    """(B, 3, S, S) -> (B, N, patch x patch x 3), the order of MAE's released code: row, column, colour."""
    x = cut_patches(pixels, patch).unflatten(2, (3, patch * patch))
    return x.transpose(2, 3).flatten(2)
