"""A second implementation of convolutions, pools and AlexNet, in float64 from their weights: for tests to compare with."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-5
Weights = Mapping[str, Tensor]


def conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1, pad: int = 0, dilation: int = 1
) -> Tensor:
    """A convolution as a matrix product of patches, group by group; weight: (out, in / groups, k, k)."""
    side, groups = weight.shape[2], x.shape[1] // weight.shape[1]
    rows = (x.shape[2] + 2 * pad - dilation * (side - 1) - 1) // stride + 1
    found = []
    for part, own in zip(x.chunk(groups, 1), weight.chunk(groups, 0), strict=True):
        columns = F.unfold(part, side, padding=pad, stride=stride, dilation=dilation)
        found.append(own.flatten(1) @ columns)
    y = torch.cat(found, 1).unflatten(2, (rows, -1))
    return y if bias is None else y + bias[:, None, None]


def deconv(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, pad: int) -> Tensor:
    """A transposed convolution: each place adds a patch to the output; weight: (in, out, k, k)."""
    side = weight.shape[2]
    size = (x.shape[2] - 1) * stride - 2 * pad + side
    columns = weight.flatten(1).t() @ x.flatten(2)
    y = F.fold(columns, (size, size), side, padding=pad, stride=stride)
    return y if bias is None else y + bias[:, None, None]


def normed(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Batch norm of (B, C, ...) by the statistics of the batch."""
    dims = [0, *range(2, x.ndim)]
    mean = x.mean(dims, keepdim=True)
    y = (x - mean) / ((x - mean).square().mean(dims, keepdim=True) + EPS).sqrt()
    shape = (1, -1, *[1] * (x.ndim - 2))
    return y if weight is None or bias is None else y * weight.view(shape) + bias.view(shape)


def pool(x: Tensor) -> Tensor:
    """3x3 with stride 2, as Caffe's: windows begin while some of the picture is left."""
    starts = [s for s in range(0, x.shape[2], 2) if s == 0 or s + 1 < x.shape[2]]
    return torch.stack(
        [torch.stack([x[:, :, r : r + 3, c : c + 3].amax((2, 3)) for c in starts], -1) for r in starts], -2
    )


def local_norm(x: Tensor) -> Tensor:
    """Krizhevsky et al. 2012, section 3.3, over 5 channels, with alpha / 5 as in Caffe and k = 1."""
    channels = x.shape[1]
    sums = [x[:, max(0, c - 2) : c + 3].square().sum(1) for c in range(channels)]
    return x / (1 + 1e-4 / 5 * torch.stack(sums, 1)) ** 0.75


def alexnet(
    pixels: Tensor, w: Weights, *, is_small: bool, stride: int = 1, pad: int = 1, norm: bool = False
) -> Tensor:
    """The fifth convolution's maps."""
    x = pixels
    for k in range(5):
        weight, bias = w[f"vision.convs.{k}.weight"], w[f"vision.convs.{k}.bias"]
        first = k == 0
        x = conv(x, weight, bias, stride if first else 1, pad if first else weight.shape[2] // 2)
        x = normed(x) if norm and k > 1 else x
        x = x.clamp(min=0)
        if k < 2:
            x = pool(x)
            x = x if is_small else local_norm(x)
    return x
