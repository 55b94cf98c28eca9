"""The ResNet of SimCLR and MoCo: from pixels to one vector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.video.resnet import ResNet

Stem = Literal["large", "small"]


class ImageResNet(ResNet):
    """Pixels (B, 3, H, W) -> (B, width_out): the mean over places of the last map; width_out is 4 width 2^(stages - 1).

    stem: "large", 7x7 with stride 2 and a max pool; "small", for small pictures: 3x3 with neither (SimCLR, appendix B.9).
    """

    def __init__(self, *, depths: Sequence[int], width: int, stem: Stem = "large") -> None:
        super().__init__(depths=depths, width=width, num_classes=0)
        if stem not in ("large", "small"):
            raise ValueError(f"ResNet: stem is large or small, got {stem!r}")
        self.is_small = stem == "small"
        if self.is_small:
            self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")

    def stem(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, width, H / 4, W / 4); with a small stem, (B, width, H, W)."""
        if not self.is_small:
            return super().stem(pixels)
        return F.relu(self.bn1(self.conv1(pixels)), inplace=True)
