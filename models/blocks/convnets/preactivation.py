"""ResNet v2: norms and ReLUs come before convolutions. He et al. 2016, https://arxiv.org/abs/1603.05027."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.video.resnet import EXPANSION, init_weights


class PreBottleneck(nn.Module):
    """(B, width_in, H, W) -> (B, 4 width, H / stride, W / stride); the shortcut is projected where its shape changes."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        wide = EXPANSION * width
        self.bn1, self.conv1 = nn.BatchNorm2d(width_in), nn.Conv2d(width_in, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn3, self.conv3 = nn.BatchNorm2d(width), nn.Conv2d(width, wide, 1, bias=False)
        is_same = stride == 1 and width_in == wide
        self.shortcut = None if is_same else nn.Conv2d(width_in, wide, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.bn1(x))
        kept = x if self.shortcut is None else self.shortcut(first)
        y = self.conv2(F.relu(self.bn2(self.conv1(first))))
        out: Tensor = self.conv3(F.relu(self.bn3(y))) + kept
        return out


class PreResNet(nn.Module):
    """Pixels (B, 3, H, W) -> (B, width_out): the mean over places after a last norm; width_out is 4 width 2^(stages - 1).

    stem: "large", 7x7 with stride 2 and a max pool; "small", 3x3 with neither.
    """

    def __init__(
        self, *, depths: Sequence[int], width: int, stem: Literal["large", "small"] = "large"
    ) -> None:
        super().__init__()
        if stem not in ("large", "small"):
            raise ValueError(f"ResNet: stem is large or small, got {stem!r}")
        self.is_small = stem == "small"
        size, stride = (3, 1) if self.is_small else (7, 2)
        self.conv1 = nn.Conv2d(3, width, size, stride, padding=size // 2, bias=False)
        blocks, width_in = [], width
        for stage, depth in enumerate(depths):
            for k in range(depth):
                blocks.append(PreBottleneck(width_in, width * 2**stage, 2 if stage and not k else 1))
                width_in = EXPANSION * width * 2**stage
        self.blocks, self.norm, self.width_out = nn.Sequential(*blocks), nn.BatchNorm2d(width_in), width_in
        init_weights(self)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.conv1(pixels)
        x = x if self.is_small else F.max_pool2d(x, 3, 2, padding=1)
        return F.relu(self.norm(self.blocks(x))).mean((2, 3))
