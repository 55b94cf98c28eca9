"""Embeddings of image regions: a detector's features and boxes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


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
