"""Region proposals: for every anchor whether an object is there, and how the anchor must move to fit it.

Ren et al. 2015, Faster R-CNN, https://arxiv.org/abs/1506.01497.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.detection.anchors import cell_anchors, grid_anchors
from vlpipe.models.detection.boxes import RPN_WEIGHTS, clip, decode, encode
from vlpipe.models.detection.config import STRIDE, DetectorConfig
from vlpipe.models.detection.matching import Target, match, sample
from vlpipe.models.detection.nms import nms


class Rpn(nn.Module):
    """C4 maps (B, C, H, W) -> per image proposals (N, 4) in pixels of the resized image."""

    cell_anchors: Tensor

    def __init__(self, config: DetectorConfig, width_in: int) -> None:
        super().__init__()
        self.config = config
        cell = cell_anchors(config.anchor_sizes, config.aspect_ratios)
        self.register_buffer("cell_anchors", cell)  # stored: a checkpoint may bring others
        self.conv = nn.Conv2d(width_in, config.rpn_width, 3, padding=1)
        self.objectness = nn.Conv2d(config.rpn_width, len(cell), 1)
        self.offsets = nn.Conv2d(config.rpn_width, 4 * len(cell), 1)
        for layer in (self.conv, self.objectness, self.offsets):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Anchors (N, 4), logits (B, N), offsets (B, N, 4); N = H x W x anchors per place."""
        hidden = F.relu(self.conv(maps))
        logits = self.objectness(hidden).permute(0, 2, 3, 1).flatten(1).float()
        offsets = self.offsets(hidden).permute(0, 2, 3, 1).reshape(*logits.shape, 4).float()
        anchors = grid_anchors(self.cell_anchors, maps.shape[2], maps.shape[3], STRIDE)
        return anchors, logits, offsets

    @torch.no_grad()
    def propose(self, anchors: Tensor, logits: Tensor, offsets: Tensor, size: tuple[int, int]) -> Tensor:
        """Of one image of `size` (height, width): its best boxes (N, 4) after suppression, best first."""
        config = self.config
        before = config.train_proposals_before if self.training else config.proposals_before
        best = logits.argsort(descending=True, stable=True)[:before]
        boxes = clip(decode(anchors[best], offsets[best], RPN_WEIGHTS), size)
        whole = (boxes[:, 2:] > boxes[:, :2]).all(1)
        boxes, scores = boxes[whole], logits[best][whole]
        limit = config.train_proposals if self.training else config.proposals
        return boxes[nms(boxes, scores, config.rpn_nms, limit=limit)]

    def losses(
        self, anchors: Tensor, logits: Tensor, offsets: Tensor, targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """`rpn_objectness`: cross entropy; `rpn_box`: L1 of offsets; both summed over `rpn_samples` anchors, per sample."""
        config = self.config
        objectness, box = logits.sum() * 0, offsets.sum() * 0
        for k, target in enumerate(targets):
            which, kind = match(anchors, target.boxes, *config.rpn_iou, best_for_each=True)
            objects, background = sample(kind, config.rpn_samples, config.rpn_object_share)
            picked = torch.cat([objects, background])
            wanted = torch.zeros_like(logits[k, picked])
            wanted[: len(objects)] = 1
            objectness = objectness + F.binary_cross_entropy_with_logits(
                logits[k, picked], wanted, reduction="sum"
            )
            if len(objects):
                true = encode(anchors[objects], target.boxes[which[objects]], RPN_WEIGHTS)
                box = box + (offsets[k, objects] - true).abs().sum()
        total = config.rpn_samples * len(targets)
        return {"rpn_objectness": objectness / total, "rpn_box": box / total}
