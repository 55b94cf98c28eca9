"""Anchors: the boxes that proposals are offsets of, the same ones around every place of the feature maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def cell_anchors(sizes: Sequence[float], aspect_ratios: Sequence[float]) -> Tensor:
    """(sizes x ratios, 4) around (0, 0): of area size^2 and height / width = ratio; ratios run faster."""
    found = []
    for size in sizes:
        for ratio in aspect_ratios:
            width = size / ratio**0.5
            height = ratio * width
            found.append([-width / 2, -height / 2, width / 2, height / 2])
    return torch.tensor(found)


def grid_anchors(cell: Tensor, height: int, width: int, stride: int) -> Tensor:
    """`cell` (A, 4) at every place of (height, width) maps: (height x width x A, 4), place (0, 0) being pixel (0, 0)."""
    y = torch.arange(height, device=cell.device, dtype=cell.dtype) * stride
    x = torch.arange(width, device=cell.device, dtype=cell.dtype) * stride
    yx = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).reshape(-1, 2)
    shifts = yx[:, [1, 0, 1, 0]]
    return (shifts[:, None] + cell).reshape(-1, 4)
