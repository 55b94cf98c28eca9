"""Windows of clips as one vector per clip."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_of(windows: Tensor, mask: Tensor | None) -> Tensor:
    """Returns the mean (..., D) of windows (..., T, D). mask: (..., T) bool, False for padding; None if there is none."""
    if mask is None:
        return windows.mean(-2)
    seen = mask[..., None].to(windows.dtype)
    return (windows * seen).sum(-2) / seen.sum(-2).clamp(min=1)


def greatest_of(windows: Tensor, mask: Tensor | None) -> Tensor:
    """Returns the greatest value of each channel, (..., D), of windows (..., T, D). mask: as in `mean_of`."""
    if mask is not None:
        windows = windows.masked_fill(~mask[..., None], torch.finfo(windows.dtype).min)
    return windows.amax(dim=-2)
