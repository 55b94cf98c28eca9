"""S3D of Kinetics: an Inception whose 3D convolutions are parted into space, then time. Names are torchvision's.

Xie et al. 2018, https://arxiv.org/abs/1712.04851. Two files are published and hold the same network: torchvision's
`s3d` and kylemin's `S3D_kinetics400.pt`. Their names differ mechanically; so do the pixel values they were trained on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from vlpipe.models.weights.published import fill, read_state

FEATURE_DIM = 1024
MIN_FRAMES = 14  # fewer leave less than 2 time steps at the end
EPS, MOMENTUM = 1e-3, 1e-3  # of every BatchNorm
# in | branch0 | branch1: 1x1, 3x3 | branch2: 1x1, 3x3 | branch3
MIXED = (
    (192, 64, 96, 128, 16, 32, 32),  # 3b
    (256, 128, 128, 192, 32, 96, 64),  # 3c
    (480, 192, 96, 208, 16, 48, 64),  # 4b
    (512, 160, 112, 224, 24, 64, 64),  # 4c
    (512, 128, 128, 256, 24, 64, 64),  # 4d
    (512, 112, 144, 288, 32, 64, 64),  # 4e
    (528, 256, 160, 320, 32, 128, 128),  # 4f
    (832, 256, 160, 320, 32, 128, 128),  # 5b
    (832, 384, 192, 384, 48, 128, 128),  # 5c
)
# kylemin's names for the parts of one convolution, longest first, and their places in torchvision's
PARTS = (("conv_s", "0.0"), ("bn_s", "0.1"), ("conv_t", "1.0"), ("bn_t", "1.1"), ("conv", "0"), ("bn", "1"))


class S3d(nn.Module):
    """Frames (B, 3, T, H, W), normalised as the weights want them, T >= 14 -> logits (B, num_classes)."""

    def __init__(self, num_classes: int = 400, dropout: float = 0.2) -> None:
        super().__init__()
        mixed = [Mixed(*widths) for widths in MIXED]
        self.features = nn.Sequential(
            Separable(3, 64, 7, stride=2),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
            conv(64, 64, (1, 1, 1)),
            Separable(64, 192, 3),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
            *mixed[:2],
            nn.MaxPool3d(3, 2, 1),
            *mixed[2:7],
            nn.MaxPool3d(2, 2),
            *mixed[7:],
        )
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Conv3d(FEATURE_DIM, num_classes, 1))

    def pooled(self, frames: Tensor) -> Tensor:
        """(B, 3, T, H, W) -> (B, 1024): the mean over places and over pairs of neighbouring time steps.

        torchvision pools 7 x 7 places, so takes 224 x 224 pixels only; the mean over all places is the same there.
        """
        if frames.shape[2] < MIN_FRAMES:
            raise ValueError(f"S3D needs at least {MIN_FRAMES} frames, got {frames.shape[2]}")
        maps = self.features(frames)  # (B, 1024, T / 8, H / 32, W / 32)
        steps = maps.float().mean((3, 4))  # (B, 1024, T / 8)
        return ((steps[:, :, :-1] + steps[:, :, 1:]) / 2).mean(2).to(maps.dtype)

    def forward(self, frames: Tensor) -> Tensor:
        return self.classifier(self.pooled(frames)[:, :, None, None, None]).flatten(1)

    @classmethod
    def load(cls, source: str | Path) -> S3d:
        """From a file, folder or hub id of either layout."""
        return cls.from_state(read_state(source))

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> S3d:
        """From tensors named as torchvision or as kylemin names them; ValueError lists what does not fit."""
        state = to_torchvision(state)
        head = state.get("classifier.1.weight")
        net = cls(num_classes=400 if head is None else len(head))
        fill(net, state, "S3D")
        return net


class Separable(nn.Sequential):
    """(B, C_in, T, H, W): 1 x k x k, then k x 1 x 1, each with BatchNorm and ReLU; `stride` in all three."""

    def __init__(self, width_in: int, width: int, k: int, stride: int = 1) -> None:
        super().__init__(
            conv(width_in, width, (1, k, k), (1, stride, stride)),
            conv(width, width, (k, 1, 1), (stride, 1, 1)),
        )


class Mixed(nn.Module):
    """Four branches side by side: (B, width_in, T, H, W) -> (B, b0 + b1 + b2 + b3, T, H, W)."""

    def __init__(self, width_in: int, b0: int, b1a: int, b1: int, b2a: int, b2: int, b3: int) -> None:
        super().__init__()
        one = (1, 1, 1)
        self.branch0 = conv(width_in, b0, one)
        self.branch1 = nn.Sequential(conv(width_in, b1a, one), Separable(b1a, b1, 3))
        self.branch2 = nn.Sequential(conv(width_in, b2a, one), Separable(b2a, b2, 3))
        self.branch3 = nn.Sequential(nn.MaxPool3d(3, 1, 1), conv(width_in, b3, one))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch0(x), self.branch1(x), self.branch2(x), self.branch3(x)], dim=1)


def conv(
    width_in: int, width: int, kernel: tuple[int, int, int], stride: tuple[int, int, int] = (1, 1, 1)
) -> nn.Sequential:
    """Convolution (no bias, padded to keep the size), BatchNorm, ReLU."""
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    return nn.Sequential(
        nn.Conv3d(width_in, width, kernel, stride, padding, bias=False),
        nn.BatchNorm3d(width, eps=EPS, momentum=MOMENTUM),
        nn.ReLU(inplace=True),
    )


def is_kylemin(state: Mapping[str, Tensor]) -> bool:
    return any(name.removeprefix("module.").startswith("base.") for name in state)


def to_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """kylemin's names as torchvision's; torchvision's stay as they are. The tensors are the same."""
    plain = {name.removeprefix("module."): value for name, value in state.items()}
    return {_renamed(n): v for n, v in plain.items()} if is_kylemin(plain) else plain


def _renamed(name: str) -> str:
    """base.5.branch1.1.conv_s.weight -> features.5.branch1.1.0.0.weight."""
    name = re.sub(r"^base\.", "features.", name)
    name = re.sub(r"^fc\.0\.", "classifier.1.", name)
    for theirs, place in PARTS:
        name = name.replace(f".{theirs}.", f".{place}.")
    return re.sub(r"(\.branch0)\.0\.(?=\d)", r"\1.", name)  # there branch0 is a Sequential of one
