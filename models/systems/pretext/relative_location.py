"""Relative location: where a patch is, seen from another one. Doersch et al. 2015, https://arxiv.org/abs/1505.05192."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.blocks.convnets.alexnet import WIDTHS, AlexNet, Norm, pool, pooled_size
from vlpipe.models.interface.model import Model
from vlpipe.models.interface.outputs import Outputs

PLACES = 8  # around a patch: `patch_pairs.PLACES`


class RelativeLocation(Model):
    """AlexNet reads each patch by itself up to the sixth layer; the seventh to ninth read both.

    Defaults are those of the authors' code, with batch norms without scale or shift (norm: "batch"). The view of its
    objective makes pairs of patches (`patch_pairs`). From each patch its means are taken, colours but one if the pair says
    so, and the rest is brought to a root mean square of 1.
    """

    STREAMS = {"image": "distorted:Distorted"}  # noqa: RUF012

    def __init__(
        self,
        *,
        image_size: int = 400,
        patch_size: int = 96,
        widths: Sequence[int] = WIDTHS,
        stem: Literal["large", "small"] = "large",
        stride: int = 4,
        pad: int = 5,
        norm: Norm = "batch",
        width: int = 4096,
    ) -> None:
        super().__init__()
        self.vision = AlexNet(widths=widths, stem=stem, stride=stride, pad=pad, norm=norm)
        has_norm = norm == "batch"

        def linear(width_in: int) -> nn.Sequential:
            scale = nn.BatchNorm1d(width, affine=False) if has_norm else nn.Identity()
            return nn.Sequential(nn.Linear(width_in, width), scale, nn.ReLU())

        self.patch = linear(pooled_size(self.vision, patch_size))
        self.both = nn.Sequential(linear(2 * width), nn.Linear(width, width), nn.ReLU())
        self.place = nn.Linear(width, PLACES)
        self.embed_dim = self.vision.width_out

    def image_feat(self, out: Outputs) -> Tensor:
        """(B, widths[4]), unit norm: the mean place of the fifth convolution, of the whole picture."""
        maps = self.vision(prepared(out.stream("image").data))
        return F.normalize(maps.mean((2, 3)).float(), dim=-1)

    def logits(self, out: Outputs) -> Tensor:
        """(B, 8): where the second patch is, seen from the first."""
        image = out.stream("image")
        if image.data.ndim != 5:
            raise ValueError(
                f"RelativeLocation: its objective needs a view with patch_pairs:PatchPairs, got {tuple(image.data.shape)}"
            )
        colour = image.extra.get("colour")
        kept = None if colour is None else colour.flatten()
        maps = pool(self.vision(prepared(image.data.flatten(0, 1), kept)))
        each = self.patch(maps.flatten(1))
        found: Tensor = self.place(self.both(each.view(len(image), -1)))
        return found


def prepared(pixels: Tensor, colour: Tensor | None = None) -> Tensor:
    """Returns patches (N, 3, H, W) without the mean of each colour, and with a root mean square of 1.

    colour: (N,) the one that is kept; the others become 0. The authors' code has noise of half a grey level there.
    """
    x = pixels - pixels.mean((2, 3), keepdim=True)
    if colour is not None:
        kept = colour[:, None] == torch.arange(3, device=x.device)
        x = x * kept[:, :, None, None].to(x.dtype)
    size = x.square().mean((1, 2, 3), keepdim=True).sqrt()
    return torch.div(x, size + 1e-6)
