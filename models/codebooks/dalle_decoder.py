"""The decoder of DALL-E's discrete VAE. Ramesh et al. 2021, https://arxiv.org/abs/2102.12092, appendix A.1."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from vlpipe.models.codebooks.dalle import DalleBlock

GROUPS = 4
MARGIN = 0.1  # pixels are mapped from 0..1 to MARGIN..1 - MARGIN, so that their logits are bounded (A.3)


class DalleDecoderBlock(DalleBlock):
    """As the encoder's, but the first convolution is the one of single places."""

    def __init__(self, width_in: int, width: int, gain: float) -> None:
        super().__init__(width_in, width, gain, kernels=(1, 3, 3, 3))


class DalleDecoder(nn.Module):
    """Weights (B, num_codes, H, W) of the codes, one-hot or relaxed -> (B, 6, 8 H, 8 W).

    The six are three locations and three logarithms of scales (`Elb`). width: of the last of four groups, the ones before
    which are 2, 4 and 8 times as wide; depth: blocks in a group; code_width: of the vector of a code. Defaults are those of
    the published weights.
    """

    def __init__(
        self, *, num_codes: int = 8192, width: int = 256, depth: int = 2, code_width: int = 128
    ) -> None:
        super().__init__()
        self.input = nn.Conv2d(num_codes, code_width, 1)
        widths = [code_width, 8 * width, 4 * width, 2 * width, width]
        gain = 1 / (GROUPS * depth) ** 2
        self.groups = nn.ModuleList(
            nn.ModuleList(
                DalleDecoderBlock(widths[k] if i == 0 else widths[k + 1], widths[k + 1], gain)
                for i in range(depth)
            )
            for k in range(GROUPS)
        )
        self.output = nn.Conv2d(width, 6, 1)

    def forward(self, weights: Tensor) -> Tensor:
        x = self.input(weights)
        for k, group in enumerate(self.groups):
            for block in group.children():
                x = block(x)
            x = F.interpolate(x, scale_factor=2, mode="nearest") if k < GROUPS - 1 else x
        out: Tensor = self.output(F.relu(x))
        return out


def init_convolutions(module: nn.Module) -> None:
    """Initialises convolutions as DALL-E's code: normal, of variance 1 / (number of inputs of a value), zero biases."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            inputs = part.in_channels * math.prod(part.kernel_size)
            nn.init.normal_(part.weight, std=inputs**-0.5)
            assert part.bias is not None
            nn.init.zeros_(part.bias)


def mapped(pixels: Tensor) -> Tensor:
    """Returns pixels from 0 to 1 as values from MARGIN to 1 - MARGIN."""
    return (1 - 2 * MARGIN) * pixels + MARGIN


def unmapped(values: Tensor) -> Tensor:
    """Returns the pixels from 0 to 1 of such values; what is beyond is cut off."""
    return ((values - MARGIN) / (1 - 2 * MARGIN)).clamp(0, 1)
