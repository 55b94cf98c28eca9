"""ResNeXt-101 over time and space: the motion half of HowTo100M's first features. Names are 3D-ResNets-PyTorch's.

Hara et al. 2018, https://arxiv.org/abs/1711.09577; weights: `resnext-101-kinetics.pth` of
https://github.com/kenshohara/3D-ResNets-PyTorch. Pixels are 0 to 255 less their mean (see `stages.features`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.weights.published import fill, read_state

CARDINALITY = 32
EXPANSION = 2  # channels out of a block per channel inside it
DEPTHS = (3, 4, 23, 3)


class ResNeXt3d(nn.Module):
    """Frames (B, 3, T, H, W) -> logits (B, num_classes)."""

    def __init__(self, depths: Sequence[int] = DEPTHS, num_classes: int = 400, width: int = 128) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(3, 64, 7, (1, 2, 2), 3, bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        width_in = 64
        for k, depth in enumerate(depths):
            inner, stride = width * 2**k, 1 if k == 0 else 2
            blocks = [Block(width_in, inner, stride)]
            width_in = EXPANSION * inner
            blocks += [Block(width_in, inner) for _ in range(depth - 1)]
            setattr(self, f"layer{k + 1}", nn.Sequential(*blocks))
        self.num_layers, self.width_out = len(depths), width_in
        self.fc = nn.Linear(width_in, num_classes)

    def pooled(self, frames: Tensor) -> Tensor:
        """(B, 3, T, H, W) -> (B, 2048): the mean over time and places; 16 frames of 112 x 112 in training."""
        x = F.relu(self.bn1(self.conv1(frames)), inplace=True)
        x = F.max_pool3d(x, 3, 2, 1)
        for k in range(self.num_layers):
            x = getattr(self, f"layer{k + 1}")(x)
        return x.mean((2, 3, 4))

    def forward(self, frames: Tensor) -> Tensor:
        return self.fc(self.pooled(frames))

    @classmethod
    def load(cls, source: str | Path) -> ResNeXt3d:
        return cls.from_state(read_state(source))

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> ResNeXt3d:
        """Depths and sizes are read off names and shapes. ValueError lists what does not fit."""
        state = {name.removeprefix("module."): value for name, value in state.items()}
        if "layer1.0.conv1.weight" not in state or "fc.weight" not in state:
            raise ValueError(
                f"ResNeXt-3D needs tensors such as layer1.0.conv1.weight and fc.weight; the weights have {sorted(state)[:3]}"
            )
        depths: list[int] = []
        while num := len({n.split(".")[1] for n in state if n.startswith(f"layer{len(depths) + 1}.")}):
            depths.append(num)
        width = state["layer1.0.conv1.weight"].shape[0]
        net = cls(depths, num_classes=len(state["fc.weight"]), width=width)
        fill(net, state, "ResNeXt-3D")
        return net


class Block(nn.Module):
    """1x1x1, 3x3x3 in 32 groups, 1x1x1 beside a shortcut; halves time and places when `stride` is 2."""

    def __init__(self, width_in: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(width_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = nn.Conv3d(width, width, 3, stride, 1, groups=CARDINALITY, bias=False)
        self.bn2 = nn.BatchNorm3d(width)
        self.conv3 = nn.Conv3d(width, EXPANSION * width, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(EXPANSION * width)
        self.downsample: nn.Module | None = None
        if stride != 1 or width_in != EXPANSION * width:
            self.downsample = nn.Sequential(
                nn.Conv3d(width_in, EXPANSION * width, 1, stride, bias=False),
                nn.BatchNorm3d(EXPANSION * width),
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        return F.relu(self.bn3(self.conv3(y)) + shortcut, inplace=True)
