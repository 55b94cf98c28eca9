"""A context that sees a row and the rows above it.

Hénaff et al. 2020 (CPC v2), https://arxiv.org/abs/1905.09272, appendix A.2.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class RowBlock(nn.Module):
    """(B, width, R, C) -> the same: along a row on both sides, then with the row above, beside a shortcut."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(width, inner, 1)
        self.along = nn.Conv2d(inner, inner, (1, 3), padding=(0, 1))
        self.above = nn.Conv2d(inner, inner, (2, 1))
        self.up = nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.along(F.relu(self.down(x)))
        y = F.relu(self.above(F.pad(y, (0, 0, 1, 0))))
        out: Tensor = x + self.up(y)
        return out


class RowsAbove(nn.Module):
    """Feature maps (B, width, R, C) -> context (B, width, R, C); row r depends on rows 0 to r alone."""

    def __init__(self, width: int, inner: int, num_layers: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(RowBlock(width, inner) for _ in range(num_layers)))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.blocks(x))
