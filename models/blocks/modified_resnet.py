"""The ResNet of CLIP: a stem of three convolutions, average pools where others stride, attention for the last pool.

Radford et al. 2021, https://arxiv.org/abs/2103.00020, section 2.4. Names of parameters are those of CLIP's checkpoints.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.blocks.attention import attend

EXPANSION = 4  # channels out of a block per channel inside it
STRIDE = 32  # pixels per position of the last feature map


class AntialiasedBottleneck(nn.Module):
    """(B, width_in, H, W) -> (B, 4 width, H / stride, W / stride); an average pool takes the place of a stride."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        wide = EXPANSION * width
        self.conv1 = nn.Conv2d(width_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(width, wide, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(wide)
        nn.init.zeros_(self.bn3.weight)  # a block begins as its shortcut
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or width_in != wide:
            conv = nn.Conv2d(width_in, wide, 1, bias=False)
            parts = {"-1": nn.AvgPool2d(stride), "0": conv, "1": nn.BatchNorm2d(wide)}
            self.downsample = nn.Sequential(OrderedDict(parts))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.avgpool(F.relu(self.bn2(self.conv2(y))))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class AttentionPool(nn.Module):
    """Feature map (B, width, G, G) -> (B, width_out): the mean position attends to itself and all positions."""

    def __init__(self, grid: int, width: int, num_heads: int, width_out: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.positional_embedding = nn.Parameter(torch.randn(grid * grid + 1, width) * width**-0.5)
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, width_out)
        for part in (self.q_proj, self.k_proj, self.v_proj, self.c_proj):
            nn.init.normal_(part.weight, std=width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(1, keepdim=True), x], dim=1)
        x = x + self.positional_embedding.to(x.dtype)
        q, k, v = (
            self._heads(proj(y)) for proj, y in ((self.q_proj, x[:, :1]), (self.k_proj, x), (self.v_proj, x))
        )
        out: Tensor = self.c_proj(attend(q, k, v, None)[:, 0])
        return out

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (B, H, L, D / H)


class ModifiedResNet(nn.Module):
    """Pixels (B, 3, S, S) -> (B, width_out). depths: blocks in each of the four stages.

    Raises ValueError if the image's size is no multiple of 32, or there are not four stages.
    """

    def __init__(
        self, image_size: int, depths: Sequence[int], width: int, num_heads: int, width_out: int
    ) -> None:
        super().__init__()
        if image_size % STRIDE or len(depths) != 4:
            raise ValueError(
                f"ResNet: image_size must be a multiple of {STRIDE}, got {image_size}; and four stages have "
                f"depths, got {list(depths)}"
            )
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        width_in = width
        for i, depth in enumerate(depths):
            inner = width * 2**i
            blocks = []
            for at in range(depth):
                blocks.append(AntialiasedBottleneck(width_in, inner, stride=2 if i and not at else 1))
                width_in = EXPANSION * inner
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.attnpool = AttentionPool(image_size // STRIDE, width_in, num_heads, width_out)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = F.relu(norm(conv(x)))
        x = F.avg_pool2d(x, 2)
        for i in range(4):
            x = self.get_submodule(f"layer{i + 1}")(x)
        out: Tensor = self.attnpool(x)
        return out
