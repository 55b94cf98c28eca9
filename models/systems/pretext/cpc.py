"""CPC: what is above in an image predicts the vectors of patches below, among those of all patches.

Oord et al. 2018, https://arxiv.org/abs/1807.03748, section 3.2; the context of rows is that of Hénaff et al. 2020,
https://arxiv.org/abs/1905.09272, since the first paper has no details of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.blocks.convnets.preactivation import PreResNet
from vlpipe.models.blocks.convnets.rows_above import RowsAbove
from vlpipe.models.interface.model import Model
from vlpipe.models.interface.outputs import Outputs


class Cpc(Model):
    """Defaults are those of the first paper: three stages of ResNet-101 v2 on 7 x 7 patches of 64 pixels, 32 apart.

    The stream `image` has pictures, which are cut here, or the patches of `patch_grid`. steps: how many rows below are
    predicted; skip: the nearest ones that are not, since their patches overlap. target_dim: of a projection of the vectors
    that are predicted (version 2); None: the vectors themselves.
    """

    STREAMS = {"image": "distorted:Distorted"}  # noqa: RUF012

    def __init__(
        self,
        *,
        image_size: int = 256,
        patch_size: int = 64,
        stride: int = 32,
        layers: Sequence[int] = (3, 4, 23),
        width: int = 64,
        stem: Literal["large", "small"] = "large",
        context_width: int = 256,
        context_layers: int = 5,
        steps: int = 5,
        skip: int = 1,
        target_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.grid = (image_size - patch_size) // stride + 1
        if not 1 <= skip + steps < self.grid or (image_size - patch_size) % stride:
            raise ValueError(
                "model: patches must fill the image, and skip + steps be below the number of their rows; got "
                f"image_size {image_size}, patch_size {patch_size}, stride {stride}, skip {skip}, steps {steps}"
            )
        self.vision = PreResNet(depths=layers, width=width, stem=stem)
        self.embed_dim, self.first_step = self.vision.width_out, skip + 1
        self.context = RowsAbove(self.embed_dim, context_width, context_layers)
        target = self.embed_dim if target_dim is None else target_dim
        self.target = None if target_dim is None else nn.Linear(self.embed_dim, target)
        self.predict = nn.ModuleList(nn.Linear(self.embed_dim, target, bias=False) for _ in range(steps))

    def patch_feats(self, out: Outputs) -> Tensor:
        """(B, R, C, embed_dim): each patch by itself."""
        data = out.stream("image").data
        patches = data if data.ndim == 5 else self._cut(data)
        found = self.vision(patches.flatten(0, 1))
        return found.view(len(data), self.grid, self.grid, -1)

    def _cut(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, R x C, 3, patch, patch), row by row."""
        size, stride = self.config.patch_size, self.config.stride
        cells = pixels.unfold(2, size, stride).unfold(3, size, stride)
        return cells.permute(0, 2, 3, 1, 4, 5).flatten(1, 2)

    def image_feat(self, out: Outputs) -> Tensor:
        """(B, embed_dim), unit norm: the mean of the patches."""
        return F.normalize(out.patch_feats.mean((1, 2)).float(), dim=-1)

    def place_feats(self, out: Outputs) -> Tensor:
        """(B, R, C, E): what is predicted."""
        return out.patch_feats if self.target is None else self.target(out.patch_feats)

    def row_predictions(self, out: Outputs) -> Tensor:
        """(B, K, R, C, E): of the context at each place, one linear map per step."""
        context = self.context(out.patch_feats.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return torch.stack([predict(context) for predict in self.predict], dim=1)
