"""Jigsaw: from the tiles of an image in a wrong order, which order it is.

Noroozi & Favaro 2016, https://arxiv.org/abs/1603.09246.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.blocks.convnets.alexnet import WIDTHS, AlexNet, pool, pooled_size
from vlpipe.models.interface.model import Model
from vlpipe.models.interface.outputs import Outputs


class Jigsaw(Model):
    """The context-free network: AlexNet reads each tile by itself, and layers from the seventh on all of them.

    Defaults are those of the authors' code. The view of its objective makes tiles of pictures (`jigsaw`). Each tile is
    normalised by its own mean and deviation (section 3.3). stem: see `AlexNet`. tile_width: of a tile's vector; width: of
    the layer that joins them. dropout: of both.
    """

    STREAMS = {"image": "distorted:Distorted"}  # noqa: RUF012

    def __init__(
        self,
        *,
        image_size: int = 225,
        tile_size: int = 64,
        num_tiles: int = 9,
        num_orders: int = 1000,
        widths: Sequence[int] = WIDTHS,
        stem: Literal["large", "small"] = "large",
        stride: int = 2,
        groups: int = 2,
        tile_width: int = 1024,
        width: int = 4096,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.vision = AlexNet(widths=widths, stem=stem, stride=stride, groups=groups)
        self.tile = nn.Linear(pooled_size(self.vision, tile_size), tile_width)
        self.join = nn.Linear(num_tiles * tile_width, width)
        self.order = nn.Linear(width, num_orders)
        self.dropout, self.embed_dim = nn.Dropout(dropout), self.vision.width_out

    def image_feat(self, out: Outputs) -> Tensor:
        """(B, widths[4]), unit norm: the mean place of the fifth convolution, of the whole picture."""
        maps = self.vision(standardised(out.stream("image").data))
        return F.normalize(maps.mean((2, 3)).float(), dim=-1)

    def logits(self, out: Outputs) -> Tensor:
        """(B, num_orders)."""
        tiles = out.stream("image").data
        if tiles.ndim != 5:
            raise ValueError(
                f"Jigsaw: its objective needs a view with jigsaw:Jigsaw, got pictures {tuple(tiles.shape)}"
            )
        maps = pool(self.vision(standardised(tiles.flatten(0, 1))))
        each = self.dropout(F.relu(self.tile(maps.flatten(1))))
        joined = self.dropout(F.relu(self.join(each.view(len(tiles), -1))))
        found: Tensor = self.order(joined)
        return found


def standardised(pixels: Tensor) -> Tensor:
    """Returns pictures (B, 3, H, W) with mean 0 and deviation 1 each, over all their values."""
    centred = pixels - pixels.mean((1, 2, 3), keepdim=True)
    deviation = centred.square().mean((1, 2, 3), keepdim=True).sqrt()
    return torch.div(centred, deviation + 1e-6)
