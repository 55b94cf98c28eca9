"""What a detector is made of, as data. Defaults: the public Visual Genome detector of "bottom-up attention"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vlpipe.models.video.resnet import DEPTHS, Norm

STRIDE = 16  # of C4 maps


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """Faster R-CNN on C4 maps with class and attribute heads.

    Sizes and thresholds are those of Anderson et al. 2018 (https://arxiv.org/abs/1707.07998) as the detectron2 port of its
    Caffe weights has them (https://github.com/airsplay/py-bottom-up-attention); what that port does not train (samples,
    shares, IoU limits) is detectron2's.
    """

    num_classes: int = 1600  # without background, which is the last one of `prob`
    num_attributes: int = 400  # without "none", the last one; 0: no attribute head
    depths: tuple[int, ...] = DEPTHS[101]  # three stages make the maps, the last runs on regions
    width: int = 64  # of the stem; region features are 32 times as wide
    stride_in_1x1: bool = True
    caffe_pool: bool = True
    norm: Norm = "frozen"  # "batch" for training from scratch
    head_stride: int = 1  # of the last stage; where it does not stride it dilates
    pool: Literal["pool", "align", "align_legacy"] = "pool"  # RoIPool; RoIAlign; RoIAlign half a pixel off
    pool_size: int = 14
    sampling_ratio: int = 0  # of RoIAlign; 0: as many samples as a bin is long
    rpn_width: int = 512
    anchor_sizes: tuple[float, ...] = (64, 128, 256, 512)
    aspect_ratios: tuple[float, ...] = (0.5, 1, 2)  # height / width

    # Images: RGB or BGR of 0 to 255, resized so that the short side is `short_side`, the long one at most `long_side`.
    bgr: bool = True
    pixel_mean: tuple[float, float, float] = (102.9801, 115.9465, 122.7717)  # in that channel order
    pixel_std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    short_side: int = 600
    long_side: int = 1000

    # Proposals: so many before and after suppression, in use and in training
    proposals_before: int = 6000
    proposals: int = 300
    train_proposals_before: int = 12000
    train_proposals: int = 2000
    rpn_nms: float = 0.7

    # Training: samples per image, share of objects among them, IoU below and from which a box is background or object
    rpn_samples: int = 256
    rpn_object_share: float = 0.5
    rpn_iou: tuple[float, float] = (0.3, 0.7)
    roi_samples: int = 512
    roi_object_share: float = 0.25
    roi_iou: float = 0.5
    max_attributes: int = 16  # of one true box

    def __post_init__(self) -> None:
        if len(self.depths) != 4 or min(self.depths) < 1:
            raise ValueError(
                f"depths must be the numbers of blocks of 4 stages, each at least 1, got {list(self.depths)}"
            )
        if self.num_classes < 1 or self.num_attributes < 0:
            raise ValueError(
                "num_classes must be at least 1 and num_attributes at least 0, "
                f"got {self.num_classes} and {self.num_attributes}"
            )
        for what, one_of in (("pool", ("pool", "align", "align_legacy")), ("norm", ("batch", "frozen"))):
            if getattr(self, what) not in one_of:
                raise ValueError(f"{what} must be one of {', '.join(one_of)}, got {getattr(self, what)!r}")

    @property
    def feat_dim(self) -> int:
        """Width of a region feature; 2048 for a stem of 64."""
        return 32 * self.width

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) an image is resized to before it is looked at."""
        scale = min(self.short_side / min(width, height), self.long_side / max(width, height))
        return max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5))
