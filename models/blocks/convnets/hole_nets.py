"""The encoder, decoder and discriminator of context encoders. Pathak et al. 2016, https://arxiv.org/abs/1604.07379.

Sizes are those of the authors' code, https://github.com/pathak22/context-encoder, for any side that is 4 times a power of 2.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

SLOPE, INIT_STD = 0.2, 0.02
CORE = 4  # side of the last feature map of the encoder, and of the first of the decoder


def halvings(size: int) -> int:
    """Returns how often a side must be halved to be 4. Raises ValueError if it cannot."""
    num = (size // CORE).bit_length() - 1
    if num < 1 or CORE << num != size:
        raise ValueError(f"context encoder: a side must be 8, 16, 32, ... pixels, got {size}")
    return num


class HoleEncoder(nn.Sequential):
    """Pixels (B, 3, size, size) -> (B, bottleneck, 1, 1); convolutions of 4x4 that halve the side, then one of 4x4."""

    def __init__(self, size: int, width: int, bottleneck: int) -> None:
        widths = [width * min(8, 2 ** max(0, k - 1)) for k in range(halvings(size))]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, 2, 1, bias=False), nn.LeakyReLU(SLOPE)]
        for width_in, wide in pairwise(widths):
            layers += [
                nn.Conv2d(width_in, wide, 4, 2, 1, bias=False),
                nn.BatchNorm2d(wide),
                nn.LeakyReLU(SLOPE),
            ]
        layers += [nn.Conv2d(widths[-1], bottleneck, CORE, bias=False)]
        layers += [nn.BatchNorm2d(bottleneck), nn.LeakyReLU(SLOPE)]
        super().__init__(*layers)
        init_weights(self)


class HoleDecoder(nn.Sequential):
    """(B, bottleneck, 1, 1) -> pixels (B, 3, size, size) from -1 to 1; each transposed convolution doubles the side."""

    def __init__(self, size: int, width: int, bottleneck: int) -> None:
        widths = [width * min(8, 2**k) for k in reversed(range(halvings(size)))]
        layers: list[nn.Module] = [nn.ConvTranspose2d(bottleneck, widths[0], CORE, bias=False)]
        layers += [nn.BatchNorm2d(widths[0]), nn.ReLU()]
        for width_in, wide in pairwise(widths):
            layers += [
                nn.ConvTranspose2d(width_in, wide, 4, 2, 1, bias=False),
                nn.BatchNorm2d(wide),
                nn.ReLU(),
            ]
        layers += [nn.ConvTranspose2d(widths[-1], 3, 4, 2, 1, bias=False), nn.Tanh()]
        super().__init__(*layers)
        init_weights(self)


class HoleDiscriminator(nn.Sequential):
    """Pixels (B, 3, size, size) from -1 to 1 -> logit (B, 1, 1, 1) of their being real."""

    def __init__(self, size: int, width: int) -> None:
        widths = [width * min(8, 2**k) for k in range(halvings(size))]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, 2, 1, bias=False), nn.LeakyReLU(SLOPE)]
        for width_in, wide in pairwise(widths):
            layers += [
                nn.Conv2d(width_in, wide, 4, 2, 1, bias=False),
                nn.BatchNorm2d(wide),
                nn.LeakyReLU(SLOPE),
            ]
        layers += [nn.Conv2d(widths[-1], 1, CORE, bias=False)]
        super().__init__(*layers)
        init_weights(self)


def init_weights(net: nn.Module) -> None:
    """Normal weights of deviation 0.02, and scales of norms around 1; the authors' code has no biases of convolutions."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, std=INIT_STD)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, INIT_STD)


def middle(x: Tensor, size: int) -> Tensor:
    """(..., S, S) -> (..., size, size): the middle."""
    at = (x.shape[-1] - size) // 2
    return x[..., at : at + size, at : at + size]
