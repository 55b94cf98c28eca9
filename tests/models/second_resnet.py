"""A second implementation of the networks of SimCLR and MoCo, in float64 from their weights: for tests to compare with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]
EPS = 1e-5


def batch_norm(x: Tensor, weights: Weights, name: str, parts: int = 1) -> Tensor:
    """The statistics of each of `parts` parts of the rows, written out."""
    found = []
    for one in x.split(len(x) // parts):
        channels = one.transpose(0, 1).flatten(1)
        mean, variance = channels.mean(1), channels.var(1, unbiased=False)
        shape = (1, -1) + (1,) * (x.ndim - 2)
        y = (one - mean.view(shape)) / (variance + EPS).sqrt().view(shape)
        if f"{name}.weight" in weights:
            y = y * weights[f"{name}.weight"].view(shape) + weights[f"{name}.bias"].view(shape)
        found.append(y)
    return torch.cat(found)


def conv(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """A convolution as a matrix product of the patches."""
    out, _, side, _ = weight.shape
    pad = side // 2
    columns = torch.nn.functional.unfold(x, side, padding=pad, stride=stride)
    height = (x.shape[2] + 2 * pad - side) // stride + 1
    return (weight.flatten(1) @ columns).unflatten(2, (height, -1)).reshape(len(x), out, height, -1)


def resnet(
    pixels: Tensor, weights: Weights, depths: list[int], parts: int = 1, prefix: str = "vision."
) -> Tensor:
    """The mean of the last map, of a ResNet with a small stem."""
    own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    x = batch_norm(conv(pixels, own["conv1.weight"]), own, "bn1", parts).clamp(min=0)
    for stage, depth in enumerate(depths, 1):
        for k in range(depth):
            at, stride = f"layer{stage}.{k}", 2 if stage > 1 and k == 0 else 1
            y = batch_norm(conv(x, own[f"{at}.conv1.weight"]), own, f"{at}.bn1", parts).clamp(min=0)
            y = batch_norm(conv(y, own[f"{at}.conv2.weight"], stride), own, f"{at}.bn2", parts).clamp(min=0)
            y = batch_norm(conv(y, own[f"{at}.conv3.weight"]), own, f"{at}.bn3", parts)
            if f"{at}.downsample.0.weight" in own:
                shortcut = conv(x, own[f"{at}.downsample.0.weight"], stride)
                x = batch_norm(shortcut, own, f"{at}.downsample.1", parts)
            x = (x + y).clamp(min=0)
    return x.mean((2, 3))


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


@contextmanager
def float64() -> Iterator[None]:
    """Systems compute their last steps in float32; within this context, in the type of their weights."""
    kept = torch.Tensor.float
    torch.Tensor.float = lambda self: self  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.Tensor.float = kept  # type: ignore[method-assign]
