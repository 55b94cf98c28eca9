"""MobileNetV2: inverted residuals with linear bottlenecks. Sandler et al. 2018, https://arxiv.org/abs/1801.04381.

Convolutions pad as TensorFlow's "SAME" does, as the weights of Keras and of transformers' `google/mobilenet_v2_*` need.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.blocks.patches import sincos_positions
from vlpipe.models.blocks.transformer import INIT_STD

# Table 2 of the paper: expansion, channels, blocks, stride of the first block
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
FIRST, LAST = 32, 1280  # channels of the first and of the last convolution
STRIDE = 32  # pixels per position of the feature map
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def channels_of(channels: int, multiplier: float) -> int:
    """Returns `channels` times the width multiplier, as a multiple of 8 that is at most 10 % less."""
    wanted = round(channels * multiplier)
    found = max(8, (wanted + 4) // 8 * 8)
    return found if found >= 0.9 * wanted else found + 8


class Conv(nn.Module):
    """Convolution, batch norm and ReLU6: (B, num_in, H, W) -> (B, num_out, ceil(H / stride), ceil(W / stride)).

    norm_eps: of the batch norm; None for a convolution with bias, into which the norm is folded. relu: False for a linear
    bottleneck. depthwise: one filter per channel.
    """

    def __init__(
        self,
        num_in: int,
        num_out: int,
        size: int,
        *,
        norm_eps: float | None,
        stride: int = 1,
        depthwise: bool = False,
        relu: bool = True,
    ) -> None:
        super().__init__()
        self.size, self.stride, self.relu = size, stride, relu
        groups = num_in if depthwise else 1
        self.conv = nn.Conv2d(num_in, num_out, size, stride=stride, groups=groups, bias=norm_eps is None)
        self.norm = None if norm_eps is None else nn.BatchNorm2d(num_out, eps=norm_eps)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out")
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(same_padded(x, self.size, self.stride))
        if self.norm is not None:
            x = self.norm(x)
        return F.relu6(x) if self.relu else x


def same_padded(x: Tensor, size: int, stride: int) -> Tensor:
    """Returns x with the zeros that TensorFlow's "SAME" adds for a kernel of `size`; an odd one goes right and below."""
    down, across = (max(size - (n % stride or stride), 0) for n in x.shape[-2:])
    if not down and not across:
        return x
    return F.pad(x, (across // 2, across - across // 2, down // 2, down - down // 2))


class InvertedResidual(nn.Module):
    """Expansion by a 1 x 1 convolution, depthwise 3 x 3, and a linear 1 x 1; a shortcut if the shape stays."""

    def __init__(
        self, num_in: int, num_out: int, expansion: int, stride: int, norm_eps: float | None
    ) -> None:
        super().__init__()
        inner = num_in if expansion == 1 else channels_of(num_in * expansion, 1.0)
        self.expand = None if expansion == 1 else Conv(num_in, inner, 1, norm_eps=norm_eps)
        self.depthwise = Conv(inner, inner, 3, norm_eps=norm_eps, stride=stride, depthwise=True)
        self.project = Conv(inner, num_out, 1, norm_eps=norm_eps, relu=False)
        self.has_shortcut = stride == 1 and num_in == num_out

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else self.expand(x)
        y = self.project(self.depthwise(y))
        return x + y if self.has_shortcut else y


class MobileNetV2Features(nn.Module):
    """CLIP-normalised pixels (B, 3, H, W) -> feature map (B, num_channels, ceil(H / 32), ceil(W / 32)).

    The network itself reads values from -1 to 1: `rescaled`. multiplier: of the width. norm_eps: of batch norm; None for
    weights that it is folded into.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, *, multiplier: float = 1.0, norm_eps: float | None = 1e-3) -> None:
        super().__init__()
        if multiplier <= 0:
            raise ValueError(f"MobileNetV2: multiplier must be above 0, got {multiplier}")
        self.register_buffer("scale", 2 * torch.tensor(CLIP_STD)[:, None, None], persistent=False)
        self.register_buffer("shift", 2 * torch.tensor(CLIP_MEAN)[:, None, None] - 1, persistent=False)
        width = channels_of(FIRST, multiplier)
        self.first = Conv(3, width, 3, stride=2, norm_eps=norm_eps)
        self.blocks = nn.ModuleList()
        for expansion, channels, num, stride in STAGES:
            for i in range(num):
                out = channels_of(channels, multiplier)
                self.blocks.append(InvertedResidual(width, out, expansion, 1 if i else stride, norm_eps))
                width = out
        self.num_channels = channels_of(LAST, max(1.0, multiplier))
        self.last = Conv(width, self.num_channels, 1, norm_eps=norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        # channels last: 0.56 of the time on a CPU (64 x 128 x 128 pixels, one thread)
        x = self.first(self.rescaled(pixels).contiguous(memory_format=torch.channels_last))
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.last(x)
        return out

    def rescaled(self, pixels: Tensor) -> Tensor:
        """Returns CLIP-normalised pixels as values from -1 to 1."""
        return pixels * self.scale + self.shift


class MobileNetV2Tokens(nn.Module):
    """An image encoder: CLIP-normalised pixels (B, 3, S, S) -> tokens (B, 1 + (S / 32)^2, width).

    Each position of the feature map is a token, projected and with a position embedding; token 0 is their mean. position:
    "learned" or "sincos". multiplier, norm_eps: see `MobileNetV2Features`, here `backbone`.

    Raises ValueError if the image's size is no multiple of 32.
    """

    def __init__(
        self,
        *,
        image_size: int,
        width: int,
        position: str = "learned",
        multiplier: float = 1.0,
        norm_eps: float | None = 1e-3,
    ) -> None:
        super().__init__()
        if image_size % STRIDE:
            raise ValueError(f"MobileNetV2: image_size must be a multiple of {STRIDE}, got {image_size}")
        grid = image_size // STRIDE
        self.backbone = MobileNetV2Features(multiplier=multiplier, norm_eps=norm_eps)
        self.proj = nn.Linear(self.backbone.num_channels, width)
        nn.init.trunc_normal_(self.proj.weight, std=INIT_STD)
        nn.init.zeros_(self.proj.bias)
        if position == "learned":
            self.positions = nn.Parameter(torch.zeros(1, 1 + grid * grid, width))
            nn.init.trunc_normal_(self.positions, std=INIT_STD)
        else:
            self.register_buffer("positions", sincos_positions(grid, width), persistent=False)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, pixels: Tensor, first: bool = False) -> Tensor:
        """first: only token 0, (B, 1, width)."""
        x = self.backbone(pixels).flatten(2).transpose(1, 2)
        mean = x.mean(1, keepdim=True)
        x = self.proj(mean if first else torch.cat([mean, x], dim=1))
        out: Tensor = self.norm(x + self.positions[:, : x.shape[1]].to(x.dtype))
        return out
