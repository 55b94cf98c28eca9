"""Losses of segmentation, and of detection from patches. Tian et al. 2019 (FCOS), https://arxiv.org/abs/1904.01355."""

from __future__ import annotations

from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from vlpipe.models.interface.image_capabilities import FindsObjects, Segments
from vlpipe.models.interface.objective import Objective, Term, classification
from vlpipe.models.interface.outputs import Outputs


class Segment(Objective):
    """`segment`: cross entropy in nats per pixel that has a class; `segment_accuracy` is a diagnostic.

    stream: that of the classes (B, S, S), IGNORE for none.
    """

    LOSSES = ("segment",)
    NEEDS = (Segments,)

    def __init__(self, *, stream: str = "mask") -> None:
        super().__init__()
        self.stream = stream

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        return classification("segment", out.pixel_logits, out.stream(self.stream).data)


class DetectPatches(Objective):
    """`patch_class`: binary cross entropy in nats of all classes at all patches, and `patch_box`: 1 - IoU of the box, each
    per patch that has an object. `patch_iou` is a diagnostic.

    A patch has the smallest of the objects in whose middle its centre lies: at most a quarter of its sides, but no less than
    half a patch, from the object's centre. stream: boxes (B, M, 4) as fractions of the image's sides, with mask and
    extra["label"] (B, M).
    """

    LOSSES = ("patch_class", "patch_box")
    NEEDS = (FindsObjects,)

    def __init__(self, *, stream: str = "boxes") -> None:
        super().__init__()
        self.stream = stream

    def forward(self, out: Outputs) -> dict[str, Term | Tensor]:
        truth, found = out.stream(self.stream), out.patch_objects
        assert truth.mask is not None
        given = F.pad(truth.data.float(), (0, 0, 0, 1))  # one box that is not there, for batches without any
        there, labels = F.pad(truth.mask, (0, 1)), F.pad(truth.extra["label"], (0, 1))
        logits, sides = found[..., :-4], found[..., -4:]
        at = centres(found.shape[1], found.device)
        has, which = assigned(given, there, at)
        label = labels.gather(1, which)
        wanted = torch.zeros_like(logits).scatter(2, label[..., None], has[..., None].to(logits))
        of_class = F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
        boxes = given.gather(1, which[..., None].expand(-1, -1, 4))
        overlap = pair_iou(boxes_of(at, sides), boxes)
        num = has.sum()
        lost = torch.where(has, 1 - overlap, torch.zeros_like(overlap)).sum()
        seen = torch.where(has, overlap, torch.zeros_like(overlap)).sum().detach()
        return {
            "patch_class": Term(of_class, num),
            "patch_box": Term(lost, num),
            "patch_iou": Term(seen, num),
        }


def centres(num: int, device: torch.device) -> Tensor:
    """Returns the centres (N, 2), x and y as fractions, of a square of patches in rows."""
    side = isqrt(num)
    at = (torch.arange(side, device=device) + 0.5) / side
    return torch.stack([at.repeat(side), at.repeat_interleave(side)], dim=1)


def assigned(boxes: Tensor, there: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """Returns which patches (B, N) have an object, bool, and its index (B, N), 0 without one. at: centres (N, 2)."""
    middle, size = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    reach = (size / 4).clamp(min=0.5 / isqrt(len(at)))  # (B, M, 2)
    near = ((at[None, :, None] - middle[:, None]).abs() <= reach[:, None]).all(-1) & there[:, None]
    area = torch.where(near, size.prod(-1)[:, None], torch.inf)  # (B, N, M)
    return near.any(-1), area.argmin(-1)


def boxes_of(at: Tensor, sides: Tensor) -> Tensor:
    """Returns boxes (B, N, 4), x1, y1, x2, y2, of centres (N, 2) and distances to the sides (B, N, 4)."""
    return torch.cat([at - sides[..., :2], at + sides[..., 2:]], dim=-1)


def pair_iou(a: Tensor, b: Tensor) -> Tensor:
    """Returns the IoU (B, N) of boxes (B, N, 4) with those at the same place; 0 where both are empty."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    both = (high - low).clamp(min=0).prod(-1)
    either = sum((x[..., 2:] - x[..., :2]).clamp(min=0).prod(-1) for x in (a, b)) - both
    return both / either.clamp(min=1e-9)
