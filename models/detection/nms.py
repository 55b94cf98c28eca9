"""Non-maximum suppression: of boxes that overlap, the one with the best score stays. Ties go to the earlier box.

Whether a box stays depends on the better boxes that overlap it. All boxes are decided at once, in rounds: first all stay,
then those stay that no staying better box overlaps, and so on. Round k decides the boxes that depend on chains of at most
k others, and a round that changes nothing is the result of going through the boxes one by one (Zheng et al. 2020, Cluster
NMS, https://arxiv.org/abs/2005.03572).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from vlpipe.models.detection.boxes import iou

# Boxes decided together: fewer products on a CPU, fewer waits for a GPU. The result does not depend on it.
CPU_BLOCK, DEVICE_BLOCK = 64, 1024
DEVICE_ROUNDS = 4  # before the host waits for a GPU, to see whether the last one changed anything
CHUNK_BYTES = 1 << 22  # of one bool per box, neighbour and class


def nms(
    boxes: Tensor, scores: Tensor, threshold: float, groups: Tensor | None = None, limit: int | None = None
) -> Tensor:
    """Indices of the boxes that stay, best first, at most `limit`.

    A box goes when its IoU with a better one that stays is above `threshold`; with `groups` (N,), only when both are of
    one group (a class). The boxes are decided in blocks, best first, in memory linear in N.
    """

    def overlaps(better: Tensor, worse: Tensor) -> Tensor:
        found = iou(boxes[better], boxes[worse]) > threshold
        return found if groups is None else found & (groups[better][:, None] == groups[worse])

    num = CPU_BLOCK if boxes.device.type == "cpu" else DEVICE_BLOCK
    left = scores.argsort(descending=True, stable=True)
    kept, num_kept = [left[:0]], 0
    while len(left) and (limit is None or num_kept < limit):
        block, left = left[:num], left[num:]
        block = block[_staying(overlaps(block, block).triu(1))]
        left = left[~overlaps(block, left).any(0)]
        kept.append(block)
        num_kept += len(block)
    return torch.cat(kept)[:limit]


def _staying(goes_by: Tensor) -> Tensor:
    """(N, N), true where a better box (row) overlaps a worse one (column) -> (N,), which ones stay."""
    return _settled(goes_by.new_ones(len(goes_by)), lambda stays: ~(goes_by & stays[:, None]).any(0))


def surviving_confidence(boxes: Tensor, probs: Tensor, threshold: float) -> Tensor:
    """(N, 4), (N, C) -> (N,): each box's highest probability among the classes in whose own suppression it stays.

    This is how "bottom-up attention" ranks regions (Anderson et al. 2018, https://arxiv.org/abs/1707.07998, threshold 0.3).
    All boxes are decided at once, in chunks of classes: first in the likeliest class of each box, then in the other classes
    that could still raise the result of one.
    """
    overlaps = iou(boxes, boxes) > threshold
    overlaps.fill_diagonal_(False)
    most = int(overlaps.sum(1).max()) if len(boxes) else 0  # neighbours of a box
    if not most:
        return probs.amax(1)
    real, neighbours = overlaps.to(torch.uint8).topk(most, dim=1)  # (N, K); beyond a box's own, any other box
    first = torch.unique(probs.argmax(1))
    found = _confidence(probs[:, first], neighbours, real.bool())
    rest = (probs > found[:, None]).any(0)
    rest[first] = False
    return torch.maximum(found, _confidence(probs[:, rest], neighbours, real.bool()))


def _confidence(probs: Tensor, neighbours: Tensor, real: Tensor) -> Tensor:
    """(N, C) -> (N,), 0 where a box stays in no class. neighbours: (N, K) boxes that overlap each one, where `real`."""
    earlier = neighbours < torch.arange(len(probs), device=probs.device)[:, None]
    found = probs.new_zeros(len(probs))
    for part in probs.split(max(1, CHUNK_BYTES // neighbours.numel()), dim=1):
        if not part.shape[1]:
            continue
        others, own = part[neighbours], part[:, None]
        goes_by = ((others > own) | ((others == own) & earlier[..., None])) & real[..., None]  # (N, K, C)
        stays = _settled(torch.ones_like(part, dtype=torch.bool), partial(_next_round, goes_by, neighbours))
        found = torch.maximum(found, torch.where(stays, part, torch.zeros_like(part)).amax(1))
    return found


def _next_round(goes_by: Tensor, neighbours: Tensor, stays: Tensor) -> Tensor:
    """(N, K, C), (N, K), (N, C) -> (N, C). The maximum of bytes is `any(1)`, and faster."""
    return ~(goes_by & stays[neighbours]).view(torch.uint8).amax(1).bool()


def _settled(stays: Tensor, round_: Callable[[Tensor], Tensor]) -> Tensor:
    """Applies `round_` until it changes nothing."""
    rounds = 1 if stays.device.type == "cpu" else DEVICE_ROUNDS
    while True:
        for _ in range(rounds):
            before, stays = stays, round_(stays)
        if torch.equal(before, stays):  # the host waits here
            return stays
