"""What a region is: the last ResNet stage on the pooled region, its mean, then class, box and attributes.

Attributes see the region's feature beside an embedding of its class, as in Anderson et al. 2018, section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.detection.boxes import ROI_WEIGHTS, encode
from vlpipe.models.detection.config import STRIDE, DetectorConfig
from vlpipe.models.detection.matching import OBJECT, Target, match, sample
from vlpipe.models.detection.roi import roi_align, roi_pool
from vlpipe.models.video.resnet import init_weights, make_stage

CHUNK_REGIONS = 64  # through the last stage at a time: 300 of 14 x 14 x 2048 would be 480 MB per layer


@dataclass(frozen=True, slots=True)
class Samples:
    """Regions of one image that a training step looks at: boxes (N, 4), labels (N,), and of objects their true boxes."""

    boxes: Tensor
    labels: Tensor  # (N,); num_classes: background; objects come first
    true: Tensor  # (O, 4), of the O objects
    attributes: Tensor  # (O, K), -1 where there are no more


class RoiHead(nn.Module):
    """Pooled regions (N, C, P, P) -> features (N, D), and what is predicted from them."""

    def __init__(self, config: DetectorConfig, width_in: int) -> None:
        super().__init__()
        self.config, dim = config, config.feat_dim
        self.layer4 = make_stage(
            width_in,
            8 * config.width,
            config.depths[3],
            stride=config.head_stride,
            dilation=2 // config.head_stride,
            stride_in_1x1=config.stride_in_1x1,
            norm=config.norm,
        )
        init_weights(self.layer4)
        self.classes = nn.Linear(dim, config.num_classes + 1)
        self.boxes = nn.Linear(dim, 4 * config.num_classes)
        nn.init.normal_(self.classes.weight, std=0.01)
        nn.init.normal_(self.boxes.weight, std=0.001)
        nn.init.zeros_(self.classes.bias)
        nn.init.zeros_(self.boxes.bias)
        if config.num_attributes:
            self.class_embedding = nn.Embedding(config.num_classes + 1, dim // 8)
            self.attribute_hidden = nn.Linear(dim + dim // 8, dim // 4)
            self.attributes = nn.Linear(dim // 4, config.num_attributes + 1)

    def features(self, maps: Tensor, boxes: Tensor) -> Tensor:
        """Of one image: maps (C, H, W), boxes (N, 4) in pixels -> (N, D)."""
        found = [self._features(maps, part) for part in boxes.split(CHUNK_REGIONS)]
        return torch.cat(found) if found else maps.new_zeros(0, self.config.feat_dim)

    def _features(self, maps: Tensor, boxes: Tensor) -> Tensor:
        return self.layer4(self.pooled(maps, boxes)).mean((2, 3))

    def pooled(self, maps: Tensor, boxes: Tensor) -> Tensor:
        """(C, H, W), (N, 4) -> (N, C, P, P)."""
        config = self.config
        if config.pool == "pool":
            return roi_pool(maps, boxes, config.pool_size, 1 / STRIDE)
        aligned = config.pool == "align"
        return roi_align(maps, boxes, config.pool_size, 1 / STRIDE, config.sampling_ratio, aligned)

    def attribute_logits(self, features: Tensor, labels: Tensor) -> Tensor:
        """(N, D), (N,) classes -> (N, num_attributes + 1)."""
        both = torch.cat([features, self.class_embedding(labels).to(features.dtype)], dim=1)
        return self.attributes(F.relu(self.attribute_hidden(both))).float()

    @torch.no_grad()
    def sample(self, proposals: Tensor, target: Target) -> Samples:
        """Regions to train on, of the proposals and the true boxes."""
        config = self.config
        boxes = torch.cat([proposals, target.boxes])
        which, kind = match(boxes, target.boxes, config.roi_iou, config.roi_iou)
        objects, background = sample(kind, config.roi_samples, config.roi_object_share)
        assert bool((kind[objects] == OBJECT).all())
        labels = torch.full((len(objects) + len(background),), config.num_classes, device=boxes.device)
        labels[: len(objects)] = target.labels[which[objects]]
        true = which[objects]
        return Samples(
            boxes[torch.cat([objects, background])], labels, target.boxes[true], target.attributes[true]
        )

    def losses(self, features: Tensor, samples: list[Samples]) -> dict[str, Tensor]:
        """features (N, D) of all samples. `roi_class`, `roi_box` (L1, per region), `roi_attributes`; and accuracies."""
        labels = torch.cat([one.labels for one in samples])
        objects = (labels < self.config.num_classes).nonzero().flatten()
        logits = self.classes(features).float()
        found = {
            "roi_class": F.cross_entropy(logits, labels),
            "roi_box": self._box_loss(features[objects], labels[objects], samples) / max(1, len(labels)),
            "roi_accuracy": (logits.argmax(1) == labels).float().mean(),
        }
        if self.config.num_attributes:
            wanted = torch.cat([one.attributes for one in samples])
            found["roi_attributes"] = attribute_loss(
                self.attribute_logits(features[objects], labels[objects]), wanted
            )
        return found

    def _box_loss(self, features: Tensor, labels: Tensor, samples: list[Samples]) -> Tensor:
        """Sum over objects of the L1 distance of their own class's offsets."""
        offsets = self.boxes(features).float().unflatten(1, (-1, 4))
        rows = torch.arange(len(labels), device=labels.device)
        boxes = torch.cat([one.boxes[: len(one.true)] for one in samples])
        true = encode(boxes, torch.cat([one.true for one in samples]), ROI_WEIGHTS)
        return (offsets[rows, labels] - true).abs().sum()


def attribute_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """logits (N, A + 1), wanted (N, K), -1 for none -> half the cross entropy, mean over a region's attributes, then over
    the regions that have one (Anderson et al.'s weight of 0.5; regions without attributes say nothing).
    """
    counts = wanted >= 0
    each = F.log_softmax(logits, 1).gather(1, wanted.clamp(min=0)) * counts  # (N, K)
    per_region = each.sum(1) / counts.sum(1).clamp(min=1)
    return -0.5 * per_region.sum() / counts.any(1).sum().clamp(min=1)
