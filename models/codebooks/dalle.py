"""The encoder of DALL-E's discrete VAE. Ramesh et al. 2021, https://arxiv.org/abs/2102.12092."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.codebooks.base import Codebook


class DalleBlock(nn.Module):
    """(B, width_in, H, W) -> (B, width, H, W): a shortcut plus `gain` times four convolutions with ReLU before each.

    kernels: their sizes.
    """

    def __init__(
        self, width_in: int, width: int, gain: float, kernels: tuple[int, int, int, int] = (3, 3, 3, 1)
    ) -> None:
        super().__init__()
        inner, self.gain = width // 4, gain
        a, b, c, d = kernels
        self.conv1 = nn.Conv2d(width_in, inner, a, padding=a // 2)
        self.conv2 = nn.Conv2d(inner, inner, b, padding=b // 2)
        self.conv3 = nn.Conv2d(inner, inner, c, padding=c // 2)
        self.conv4 = nn.Conv2d(inner, width, d, padding=d // 2)
        self.shortcut = nn.Conv2d(width_in, width, 1) if width_in != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            y = conv(F.relu(y))
        shortcut: Tensor = self.shortcut(x)
        return shortcut + self.gain * y


class DalleEncoder(Codebook):
    """The encoder of DALL-E's discrete VAE, whose code is the likeliest one of a place of 8 x 8 pixels.

    Ramesh et al. 2021, https://arxiv.org/abs/2102.12092, appendix A.1. width: of the first of four groups, the next of which
    are 2, 4 and 8 times as wide; depth: blocks in a group. Defaults are those of the published weights.
    """

    patch_size = 8

    def __init__(self, *, num_codes: int = 8192, width: int = 256, depth: int = 2) -> None:
        super().__init__()
        self.num_codes = num_codes
        self.input = nn.Conv2d(3, width, 7, padding=3)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        gain = 1 / (4 * depth) ** 2
        self.groups = nn.ModuleList(
            nn.ModuleList(
                DalleBlock(widths[k] if i == 0 else widths[k + 1], widths[k + 1], gain) for i in range(depth)
            )
            for k in range(4)
        )
        self.output = nn.Conv2d(8 * width, num_codes, 1)
        self.freeze()

    def logits(self, pixels: Tensor) -> Tensor:
        """Pixels from 0 to 1 -> (B, num_codes, S / 8, S / 8)."""
        x = self.input(0.8 * pixels + 0.1)  # the values that its decoder can reach
        for k, group in enumerate(self.groups):
            for block in group.children():
                x = block(x)
            x = F.max_pool2d(x, 2) if k < 3 else x
        found: Tensor = self.output(F.relu(x))
        return found

    def codes(self, pixels: Tensor) -> Tensor:
        return self.logits(pixels).argmax(1).flatten(1)
