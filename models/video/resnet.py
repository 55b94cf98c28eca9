"""ResNet of bottleneck blocks: images, detectors (C4) and video features share it. Names are torchvision's.

He et al. 2016, https://arxiv.org/abs/1512.03385. Today's networks ("v1.5", torchvision's) stride in the 3x3 convolution of a
block; the original Caffe ones, which most region features come from, in the first 1x1 (`stride_in_1x1`), and their
stem's max pool pads at the lower right only (`caffe_pool`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXPANSION = 4  # channels out of a block per channel inside it
DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}  # blocks per stage: the paper's Table 1
Norm = Literal["batch", "frozen"]


class FrozenBatchNorm(nn.Module):
    """Batch norm with constant statistics and scale, kept as buffers: (x - mean) / sqrt(var + eps) * weight + bias."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(width))
        self.register_buffer("bias", torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        return F.batch_norm(x, mean, var, self.weight, self.bias, training=False, eps=self.eps)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions beside a shortcut: (B, width_in, H, W) -> (B, 4 width, H / stride, W / stride)."""

    def __init__(
        self,
        width_in: int,
        width: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        stride_in_1x1: bool = False,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = nn.Conv2d(width_in, width, 1, first, bias=False)
        self.bn1 = make_norm(norm, width)
        self.conv2 = nn.Conv2d(width, width, 3, second, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = make_norm(norm, width)
        self.conv3 = nn.Conv2d(width, EXPANSION * width, 1, bias=False)
        self.bn3 = make_norm(norm, EXPANSION * width)
        self.downsample: nn.Module | None = None
        if stride != 1 or width_in != EXPANSION * width:
            self.downsample = nn.Sequential(
                nn.Conv2d(width_in, EXPANSION * width, 1, stride, bias=False),
                make_norm(norm, EXPANSION * width),
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        return F.relu(self.bn3(self.conv3(y)) + shortcut, inplace=True)


def make_norm(norm: Norm, width: int) -> nn.Module:
    return FrozenBatchNorm(width) if norm == "frozen" else nn.BatchNorm2d(width)


def make_stage(
    width_in: int,
    width: int,
    depth: int,
    *,
    stride: int = 2,
    dilation: int = 1,
    stride_in_1x1: bool = False,
    norm: Norm = "batch",
) -> nn.Sequential:
    """`depth` blocks, the first of which strides; 4 * `width` channels come out."""
    blocks = [
        Bottleneck(
            width_in if k == 0 else EXPANSION * width,
            width,
            stride=stride if k == 0 else 1,
            dilation=dilation,
            stride_in_1x1=stride_in_1x1,
            norm=norm,
        )
        for k in range(depth)
    ]
    return nn.Sequential(*blocks)


class ResNet(nn.Module):
    """Pixels (B, 3, H, W), normalised -> logits (B, num_classes), or pooled features (B, 4 * width) without classes.

    depths: blocks of each stage, such as DEPTHS[101]; three of them give the C4 backbone of a detector, whose `maps`
    have a stride of 16.
    """

    def __init__(
        self,
        *,
        depths: Sequence[int] = DEPTHS[50],
        width: int = 64,
        num_classes: int = 1000,
        stride_in_1x1: bool = False,
        caffe_pool: bool = False,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        self.caffe_pool, self.num_stages = caffe_pool, len(depths)
        self.conv1 = nn.Conv2d(3, width, 7, 2, padding=3, bias=False)
        self.bn1 = make_norm(norm, width)
        width_in = width
        for k, depth in enumerate(depths):
            inner, stride = width * 2**k, 1 if k == 0 else 2
            stage = make_stage(width_in, inner, depth, stride=stride, stride_in_1x1=stride_in_1x1, norm=norm)
            setattr(self, f"layer{k + 1}", stage)
            width_in = EXPANSION * inner
        self.width_out = width_in
        self.fc = nn.Linear(width_in, num_classes) if num_classes else None
        init_weights(self)

    def stem(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, width, H / 4, W / 4)."""
        x = F.relu(self.bn1(self.conv1(pixels)), inplace=True)
        if self.caffe_pool:
            return F.max_pool2d(x, 3, 2, ceil_mode=True)
        return F.max_pool2d(x, 3, 2, padding=1)

    def maps(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> the last stage's maps (B, width_out, H / 32, W / 32), or H / 16 with three stages."""
        x = self.stem(pixels)
        for k in range(self.num_stages):
            x = getattr(self, f"layer{k + 1}")(x)
        return x

    def features(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, width_out): the mean over places; what "ResNet-152 features" are, 2048 wide."""
        return self.maps(pixels).mean((2, 3))

    def forward(self, pixels: Tensor) -> Tensor:
        pooled = self.features(pixels)
        return pooled if self.fc is None else self.fc(pooled)


def init_weights(net: nn.Module) -> None:
    """He's initialisation; norms and biases keep torch's."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
