"""Embeddings of image regions: a detector's features and boxes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.interface.batch import Stream


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


class SumRegionEmbed(nn.Module):
    """Regions (B, R, feat_dim) -> (B, R, width): the norm of the sum of the projected feature and box, and of what is added.

    The box is x1, y1, x2, y2 and its area, as fractions (ViLBERT, Unicoder-VL, InterBERT). whole: a region before them is
    the whole image, (B, R + 1, width): its feature is the mean of those of all regions, as they are after masking.
    """

    def __init__(self, feat_dim: int, width: int, dropout: float, *, whole: bool = False) -> None:
        super().__init__()
        self.dropout, self.whole = dropout, whole
        self.feat, self.box = nn.Linear(feat_dim, width), nn.Linear(5, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, regions: Stream, added: Tensor | float = 0.0) -> Tensor:
        """added: what is added before the norm, such as the embedding of a type (width,)."""
        feats, corners = regions.data, regions.extra["box"]
        area = (corners[..., 2:] - corners[..., :2]).prod(-1, keepdim=True)
        place = torch.cat([corners, area], dim=-1).to(feats)
        if self.whole:
            seen = seen_regions(regions)[..., None]
            mean = (feats * seen).sum(1, keepdim=True) / seen.sum(1, keepdim=True)
            feats = torch.cat([mean, feats], dim=1)
            place = torch.cat([place.new_tensor([0.0, 0, 1, 1, 1]).expand(len(place), 1, 5), place], dim=1)
        x = self.norm(self.feat(feats) + self.box(place) + added)
        return F.dropout(x, self.dropout, self.training)


def seen_regions(regions: Stream, whole: bool = False) -> Tensor:
    """Returns (B, R) bool, True for regions that are not padding. whole: with the image before them, (B, R + 1)."""
    seen = regions.mask
    if seen is None:
        seen = torch.ones(regions.data.shape[:2], dtype=torch.bool, device=regions.data.device)
    return torch.cat([seen.new_ones(len(seen), 1), seen], dim=1) if whole else seen
