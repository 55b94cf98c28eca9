"""Batch norms whose statistics are of more rows than one rank has (SimCLR, MoCo v3), or of fewer (MoCo)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vlpipe.models import distributed


class GlobalBatchNorm(_BatchNorm):
    """Batch norm of (B, C, ...) with the statistics of the rows of all ranks, which have the same number of rows.

    Values and gradients on W ranks are those of one rank with all rows. Unlike torch's SyncBatchNorm it works on a CPU.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"batch norm: wanted at least 2 dimensions, got {input.ndim}")

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or distributed.world_size() == 1:
            return super().forward(x)
        self._check_input_dim(x)
        with torch.autocast(x.device.type, enabled=False):
            return self._normed(x.float()).to(x.dtype)

    def _normed(self, x: Tensor) -> Tensor:
        dims, shape = [0, *range(2, x.ndim)], (1, -1, *[1] * (x.ndim - 2))
        mean = distributed.gather_with_grad(x.mean(dims)[None]).mean(0)
        centred = x - mean.view(shape)
        variance = distributed.gather_with_grad(centred.square().mean(dims)[None]).mean(0)
        self._note(mean.detach(), variance.detach(), distributed.world_size() * x.numel() // x.shape[1])
        y = centred * (variance + self.eps).rsqrt().view(shape)
        if self.weight is not None:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y

    def _note(self, mean: Tensor, variance: Tensor, num: int) -> None:
        """Moves the running statistics towards those of `num` values."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_((variance * num / (num - 1)).to(self.running_var.dtype), self.momentum)


class SplitBatchNorm(_BatchNorm):
    """Batch norm of (B, C, ...) with the statistics of each of `parts` equal parts of the batch, in order.

    One rank with W parts is like W ranks with a part each. Running statistics are the mean of those of the parts. Raises
    ValueError in training if the batch cannot be cut into so many parts.
    """

    parts: int

    def _check_input_dim(self, input: Tensor) -> None:
        if len(input) % self.parts:
            raise ValueError(f"batch norm: {len(input)} rows cannot be cut into {self.parts} equal parts")

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.parts == 1:
            return F.batch_norm(
                x,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                self.training,
                self.momentum or 0.0,
                self.eps,
            )
        self._check_input_dim(x)
        assert self.momentum is not None
        running = [self.running_mean, self.running_var]
        wide = [None if r is None else r.repeat(self.parts) for r in running]
        scale = [None if p is None else p.repeat(self.parts) for p in (self.weight, self.bias)]
        y = x.unflatten(0, (self.parts, -1)).transpose(0, 1).flatten(1, 2)  # (B / parts, parts x C, ...)
        y = F.batch_norm(y, wide[0], wide[1], scale[0], scale[1], True, self.momentum, self.eps)
        for one, several in zip(running, wide, strict=True):
            if one is not None and several is not None:
                one.copy_(several.view(self.parts, -1).mean(0))
        return y.unflatten(1, (self.parts, -1)).transpose(0, 1).flatten(0, 1)


def split_norm(parts: int) -> Callable[..., nn.Module]:
    """Returns a function that makes a `SplitBatchNorm` of so many parts."""

    def make(*args: Any, **kwargs: Any) -> nn.Module:
        norm = SplitBatchNorm(*args, **kwargs)
        norm.parts = parts
        return norm

    return make


def replace_norms(net: nn.Module, make: Callable[..., nn.Module]) -> None:
    """Replaces each batch norm in `net` by what `make(width, eps, momentum, affine)` returns; names and values stay."""
    for name, child in net.named_children():
        if isinstance(child, _BatchNorm):
            norm = make(child.num_features, child.eps, child.momentum, child.affine)
            norm._parameters.update(child._parameters)
            norm._buffers.update(child._buffers)
            setattr(net, name, norm)
        else:
            replace_norms(child, make)
