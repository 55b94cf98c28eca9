"""Boxes (x1, y1, x2, y2) in continuous pixels: overlap, clipping, and their coding as offsets from other boxes.

The coding is that of R-CNN (Girshick et al. 2014, https://arxiv.org/abs/1311.2524, appendix C), without the "+ 1" of the
first implementations: a box from 2 to 5 is 3 wide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MAX_LOG_SCALE = math.log(1000 / 16)  # a 16 px anchor grows to 1000 px at most (detectron2's limit)
RPN_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
ROI_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # Fast R-CNN's 1 / deviation of the offsets: 0.1 and 0.2


def area(boxes: Tensor) -> Tensor:
    """(..., 4) -> (...), 0 for boxes turned inside out."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """(N, 4), (M, 4) -> (N, M): intersection over union; 0 where both boxes are empty."""
    low = torch.maximum(a[:, None, :2], b[None, :, :2])
    high = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    both = (high - low).clamp(min=0).prod(-1)
    either = area(a)[:, None] + area(b)[None] - both
    return torch.where(either > 0, both / either, torch.zeros_like(both))


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """(..., 4), cut at an image of `size` (height, width)."""
    height, width = size
    limit = boxes.new_tensor([width, height, width, height])
    return boxes.clamp(min=0).minimum(limit)


def _centres(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """(..., 4) -> centres (..., 2), sides (..., 2)."""
    sides = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + sides / 2, sides


def encode(anchors: Tensor, boxes: Tensor, weights: Sequence[float]) -> Tensor:
    """Offsets (N, 4) that turn `anchors` (N, 4) into `boxes` (N, 4): moved centre over side, log of the sides' ratio."""
    from_centre, from_sides = _centres(anchors)
    to_centre, to_sides = _centres(boxes)
    offsets = torch.cat([(to_centre - from_centre) / from_sides, (to_sides / from_sides).log()], dim=-1)
    return offsets * offsets.new_tensor(weights)


def decode(anchors: Tensor, offsets: Tensor, weights: Sequence[float]) -> Tensor:
    """`anchors` (N, 4) moved by `offsets` (N, 4): the inverse of `encode`, growth limited to MAX_LOG_SCALE."""
    centre, sides = _centres(anchors)
    offsets = offsets / offsets.new_tensor(weights)
    centre = centre + offsets[..., :2] * sides
    half = sides * offsets[..., 2:].clamp(max=MAX_LOG_SCALE).exp() / 2
    return torch.cat([centre - half, centre + half], dim=-1)
