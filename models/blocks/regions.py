"""Embeddings of image regions: a detector's features and boxes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.blocks.post_norm import NORM_EPS


class MeanRegionEmbed(nn.Module):
    """Features (B, R, feat_dim) and boxes (B, R, box_dim) -> (B, R, width): the mean of both after projection and norm.

    LXMERT's. A masked feature is zero, and so is the initial bias: the gradient of the norm, whose epsilon is 1e-12, is then
    up to 1e6 times as large as usual until the bias has moved, in the released code too. Clip the gradient.
    """

    def __init__(self, feat_dim: int, box_dim: int, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.feat = nn.Linear(feat_dim, width)
        self.feat_norm = nn.LayerNorm(width, eps=1e-12)
        self.box = nn.Linear(box_dim, width)
        self.box_norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, feats: Tensor, boxes: Tensor) -> Tensor:
        x = (self.feat_norm(self.feat(feats)) + self.box_norm(self.box(boxes))) / 2
        return F.dropout(x, self.dropout, self.training)


class WholeRegionEmbed(nn.Module):
    """Regions -> (B, 1 + R, width): the norm of projected feature and place; the first is the whole image.

    ViLBERT's, Lu et al. 2019, https://arxiv.org/abs/1908.02265: a place is x1, y1, x2, y2, area. The feature of the whole
    image is the mean of those that are not masked; its box is all of it.
    """

    def __init__(self, feat_dim: int, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.feat, self.box = nn.Linear(feat_dim, width), nn.Linear(5, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, feats: Tensor, corners: Tensor, shown: Tensor) -> Tensor:
        """feats: (B, R, feat_dim). corners: (B, R, 4). shown: (B, R) bool, neither masked nor padding."""
        weight = shown.to(feats)[..., None]
        whole = (feats * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)
        area = (corners[..., 2:] - corners[..., :2]).prod(-1, keepdim=True)
        boxes = torch.cat([corners, area], -1)
        all_of_it = F.pad(boxes.new_ones(len(boxes), 1, 3), (2, 0))  # 0, 0, 1, 1, 1
        x = self.feat(torch.cat([whole, feats], 1)) + self.box(torch.cat([all_of_it, boxes], 1))
        return F.dropout(self.norm(x), self.dropout, self.training)


def shown(masked: Tensor | None, seen: Tensor) -> Tensor:
    """Returns (B, R) bool: regions that are neither padding (`seen`) nor `masked`, None for none."""
    return seen if masked is None else seen & ~masked
