"""Non-maximum suppression: of boxes that overlap, the one with the best score stays. Ties go to the earlier box."""

from __future__ import annotations

import torch
from torch import Tensor

from vlpipe.models.detection.boxes import iou


def nms(
    boxes: Tensor, scores: Tensor, threshold: float, groups: Tensor | None = None, limit: int | None = None
) -> Tensor:
    """Indices of the boxes that stay, best first, at most `limit`.

    A box goes when its IoU with a better one that stays is above `threshold`; with `groups` (N,), only when both are of
    one group (a class).
    """
    left = scores.argsort(descending=True, stable=True)
    kept: list[Tensor] = []
    while len(left) and (limit is None or len(kept) < limit):
        first, left = left[0], left[1:]
        kept.append(first)
        goes = iou(boxes[first][None], boxes[left])[0] > threshold
        if groups is not None:
            goes &= groups[left] == groups[first]
        left = left[~goes]
    return torch.stack(kept) if kept else left


def surviving_confidence(boxes: Tensor, probs: Tensor, threshold: float) -> Tensor:
    """(N, 4), (N, C) -> (N,): each box's highest probability among the classes in whose own suppression it stays.

    This is how "bottom-up attention" ranks regions (Anderson et al. 2018, https://arxiv.org/abs/1707.07998, threshold 0.3).
    All classes are suppressed at once, rank by rank.
    """
    num, classes = probs.shape[0], torch.arange(probs.shape[1], device=probs.device)
    overlaps = iou(boxes, boxes) > threshold
    overlaps.fill_diagonal_(False)
    alive = torch.ones_like(probs, dtype=torch.bool)  # (N, C)
    order = probs.argsort(dim=0, descending=True, stable=True)
    for rank in range(num):
        best = order[rank]  # (C,): per class its box of this rank
        stays = alive[best, classes]
        alive &= ~(overlaps[best] & stays[:, None]).T
    return torch.where(alive, probs, torch.zeros_like(probs)).amax(1)
