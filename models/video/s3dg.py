"""S3D-G of MIL-NCE: S3D with gates behind every branch, and a bag of words beside it in one space.

Miech et al. 2020, https://arxiv.org/abs/1912.06430. Names are those of the published checkpoints
(https://github.com/antoine77340/S3D_HowTo100M and .../MIL-NCE_HowTo100M). A pair's score is the plain dot product.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.video.s3d import FEATURE_DIM, MIXED
from vlpipe.models.weights.published import fill, read_state

MIXED_NAMES = ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c")
NUM_WORDS = 66_249  # of the published word list; id 0 is padding


class S3dG(nn.Module):
    """Frames (B, 3, T, H, W) in [0, 1] -> (B, dim); with `space_to_depth` T, H and W are even.

    space_to_depth: the published network; without it the one that training from scratch uses. num_words: 0 leaves the
    text side out.
    """

    def __init__(self, *, dim: int = 512, space_to_depth: bool = True, num_words: int = NUM_WORDS) -> None:
        super().__init__()
        self.dim, self.space_to_depth = dim, space_to_depth
        self.conv1 = (
            STConv3D(24, 64, (2, 4, 4), padding=(1, 2, 2))
            if space_to_depth
            else STConv3D(3, 64, (3, 7, 7), stride=2, padding=(1, 3, 3))
        )
        self.conv_2b = STConv3D(64, 64, (1, 1, 1))
        self.conv_2c = STConv3D(64, 192, (3, 3, 3), separable=True)
        self.gating = SelfGating(192)
        for name, widths in zip(MIXED_NAMES, MIXED, strict=True):
            setattr(self, f"mixed_{name}", InceptionBlock(*widths))
        self.fc = nn.Linear(FEATURE_DIM, dim)
        self.text_module = TextModule(dim, num_words) if num_words else None

    def pooled(self, frames: Tensor) -> Tensor:
        """(B, 3, T, H, W) -> (B, 1024): `mixed_5c`, what most feature files hold."""
        if self.space_to_depth:
            x = self.conv1(space_to_depth(frames))[
                :, :, 1:, 1:, 1:
            ]  # its padding is one too wide at the front
        else:
            x = self.conv1(frames)
        x = same_max_pool(x, (1, 3, 3), (1, 2, 2))
        x = self.gating(self.conv_2c(self.conv_2b(x)))
        x = same_max_pool(x, (1, 3, 3), (1, 2, 2))
        for name in MIXED_NAMES:
            if name == "4b":
                x = same_max_pool(x, (3, 3, 3), (2, 2, 2))
            if name == "5b":
                x = same_max_pool(x, (2, 2, 2), (2, 2, 2))
            x = getattr(self, f"mixed_{name}")(x)
        return x.mean((2, 3, 4))

    def forward(self, frames: Tensor) -> Tensor:
        return self.fc(self.pooled(frames))

    def text(self, ids: Tensor) -> Tensor:
        """Word ids (B, L), 0 is padding -> (B, dim)."""
        if self.text_module is None:
            raise ValueError("S3D-G: these weights have no text encoder (text_module.*)")
        return self.text_module(ids)

    @classmethod
    def load(cls, source: str | Path) -> S3dG:
        """From a file, folder or hub id: bare, or out of a training checkpoint."""
        return cls.from_state(read_state(source))

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> S3dG:
        """Stem, text side or none, and all sizes are read off the shapes. ValueError lists what does not fit."""
        state = {name.removeprefix("module."): value for name, value in state.items()}
        stem, head = state.get("conv1.conv1.weight"), state.get("fc.weight")
        words = state.get("text_module.word_embd.weight")
        has_text = any(name.startswith("text_module.") for name in state)
        net = cls(
            dim=512 if head is None else len(head),
            space_to_depth=stem is None or stem.shape[1] == 24,
            num_words=0 if not has_text else NUM_WORDS if words is None else len(words) - 1,
        )
        fill(net, state, "S3D-G")
        return net


class STConv3D(nn.Module):
    """Convolution, BatchNorm, ReLU; `separable`: in space, then in time, padded to keep the size."""

    def __init__(
        self,
        width_in: int,
        width: int,
        kernel: tuple[int, int, int],
        *,
        stride: int = 1,
        padding: tuple[int, int, int] = (0, 0, 0),
        separable: bool = False,
    ) -> None:
        super().__init__()
        self.separable = separable
        if not separable:
            self.conv1 = nn.Conv3d(width_in, width, kernel, stride, padding, bias=False)
            self.bn1 = nn.BatchNorm3d(width)
            return
        t, h, w = kernel
        self.conv1 = nn.Conv3d(width_in, width, (1, h, w), padding=(0, h // 2, w // 2), bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = nn.Conv3d(width, width, (t, 1, 1), padding=(t // 2, 0, 0), bias=False)
        self.bn2 = nn.BatchNorm3d(width)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(x)), inplace=True) if self.separable else x


class SelfGating(nn.Module):
    """x * sigmoid(fc(mean of x over time and places)), channel by channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc(x.mean((2, 3, 4))))[:, :, None, None, None]


class InceptionBlock(nn.Module):
    """Four gated branches side by side: (B, width_in, T, H, W) -> (B, b0 + b1 + b2 + b3, T, H, W)."""

    def __init__(self, width_in: int, b0: int, b1a: int, b1: int, b2a: int, b2: int, b3: int) -> None:
        super().__init__()
        one, three = (1, 1, 1), (3, 3, 3)
        self.conv_b0 = STConv3D(width_in, b0, one)
        self.conv_b1_a = STConv3D(width_in, b1a, one)
        self.conv_b1_b = STConv3D(b1a, b1, three, separable=True)
        self.conv_b2_a = STConv3D(width_in, b2a, one)
        self.conv_b2_b = STConv3D(b2a, b2, three, separable=True)
        self.conv_b3_b = STConv3D(width_in, b3, one)
        for branch, width in enumerate((b0, b1, b2, b3)):
            setattr(self, f"gating_b{branch}", SelfGating(width))

    def forward(self, x: Tensor) -> Tensor:
        branches = (
            self.conv_b0(x),
            self.conv_b1_b(self.conv_b1_a(x)),
            self.conv_b2_b(self.conv_b2_a(x)),
            self.conv_b3_b(F.max_pool3d(x, 3, 1, 1)),
        )
        return torch.cat([getattr(self, f"gating_b{k}")(b) for k, b in enumerate(branches)], dim=1)


class TextModule(nn.Module):
    """Word ids (B, L) -> (B, dim): each word through one layer, the greatest of each channel, one layer more.

    Padding (id 0) takes part in the maximum, as in the published code: a text's vector depends on L while it is short.
    """

    def __init__(self, dim: int, num_words: int, word_dim: int = 300, width: int = 2048) -> None:
        super().__init__()
        self.word_embd = nn.Embedding(num_words + 1, word_dim)
        self.fc1 = nn.Linear(word_dim, width)
        self.fc2 = nn.Linear(width, dim)

    def forward(self, ids: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(self.word_embd(ids))).amax(dim=1))


def space_to_depth(frames: Tensor) -> Tensor:
    """(B, C, T, H, W), T, H and W even -> (B, 8 C, T / 2, H / 2, W / 2): each 2 x 2 x 2 cube becomes channels.

    Channel ((t * 2 + h) * 2 + w) * C + c holds the pixels at (t, h, w) of the cubes.
    """
    b, c, t, h, w = frames.shape
    if t % 2 or h % 2 or w % 2:
        raise ValueError(
            f"S3D-G with space-to-depth needs an even number of frames, height and width; got {t} frames of {h} x {w}"
        )
    cubes = frames.reshape(b, c, t // 2, 2, h // 2, 2, w // 2, 2).permute(0, 3, 5, 7, 1, 2, 4, 6)
    return cubes.reshape(b, 8 * c, t // 2, h // 2, w // 2)


def same_max_pool(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    """TensorFlow's SAME: zeros around (the odd one behind), and a last window that may hang over."""
    pads = [max(k - s, 0) for k, s in zip(kernel, stride, strict=True)]
    around = [side for pad in reversed(pads) for side in (pad // 2, pad - pad // 2)]
    return F.max_pool3d(F.pad(x, around), kernel, stride, ceil_mode=True)
