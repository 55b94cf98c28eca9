"""Which true box an anchor or a proposal stands for, and which of them a training step looks at."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlpipe.models.detection.boxes import iou

IGNORED, BACKGROUND, OBJECT = -1, 0, 1


@dataclass(frozen=True, slots=True)
class Target:
    """True boxes of one image: boxes (M, 4) in pixels, labels (M,), attributes (M, K), filled up with -1."""

    boxes: Tensor
    labels: Tensor
    attributes: Tensor

    def to(self, device: torch.device) -> Target:
        return Target(self.boxes.to(device), self.labels.to(device), self.attributes.to(device))


def match(
    boxes: Tensor, true: Tensor, low: float, high: float, best_for_each: bool = False
) -> tuple[Tensor, Tensor]:
    """(N, 4), (M, 4) -> per box (the true one it overlaps most, BACKGROUND below `low`, OBJECT from `high`, else IGNORED).

    best_for_each: a true box's best boxes (ties included) are objects at any overlap, so that none is missed (Faster R-CNN
    section 3.1.2).
    """
    if not len(true):
        nothing = torch.zeros(len(boxes), dtype=torch.long, device=boxes.device)
        return nothing, nothing + BACKGROUND
    overlaps = iou(true, boxes)  # (M, N)
    most, which = overlaps.max(0)
    kind = torch.full_like(which, IGNORED)
    kind[most < low] = BACKGROUND
    kind[most >= high] = OBJECT
    if best_for_each:
        best = overlaps.amax(1, keepdim=True)
        kind[((overlaps == best) & (best > 0)).any(0)] = OBJECT
    return which, kind


def sample(kind: Tensor, num: int, object_share: float) -> tuple[Tensor, Tensor]:
    """At most `num` random indices: (objects, at most `object_share` of them; background). Draws on the CPU."""
    objects, background = ((kind == one).nonzero().flatten() for one in (OBJECT, BACKGROUND))
    num_objects = min(len(objects), int(num * object_share))
    return _drawn(objects, num_objects), _drawn(background, num - num_objects)


def _drawn(indices: Tensor, num: int) -> Tensor:
    return indices[torch.randperm(len(indices))[:num].to(indices.device)]
