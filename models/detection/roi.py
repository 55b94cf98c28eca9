"""Pooling of a region of the feature maps to a fixed grid: RoIAlign, and the older RoIPool.

Bilinear sampling on a regular grid is separable, so RoIAlign is two small matrix products per region: exact, with a backward
pass that adds in a fixed order on every device. He et al. 2017, https://arxiv.org/abs/1703.06870; RoIPool: Girshick 2015,
https://arxiv.org/abs/1504.08083, which the published Visual Genome detectors were trained with.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK_VALUES = 1 << 26  # float32 values of the wider intermediate at a time: 256 MB


def roi_align(
    maps: Tensor, boxes: Tensor, bins: int, scale: float, sampling_ratio: int = 0, aligned: bool = True
) -> Tensor:
    """maps (C, H, W) of one image, boxes (N, 4) in its pixels -> (N, C, bins, bins).

    scale: maps' pixels per image pixel, 1/16 for C4. sampling_ratio: samples per bin and axis; 0: the length of the bin,
    rounded up. aligned: pixel centres at half-integers (detectron2's ROIAlignV2); False: Caffe's and the first RoIAlign,
    shifted by half a pixel, regions at least 1 pixel wide.
    """
    low = boxes[:, :2] * scale - (0.5 if aligned else 0.0)
    sides = (boxes[:, 2:] - boxes[:, :2]) * scale
    if not aligned:
        sides = sides.clamp(min=1)
    across = _axis_weights(low[:, 0], sides[:, 0], maps.shape[2], bins, sampling_ratio).to(maps.dtype)
    down = _axis_weights(low[:, 1], sides[:, 1], maps.shape[1], bins, sampling_ratio).to(maps.dtype)
    by_row = maps.permute(1, 2, 0)  # (H, W, C)
    chunk = max(1, CHUNK_VALUES // (bins * maps.shape[0] * maps.shape[2]))
    pooled = [
        _two_products(by_row, down[k : k + chunk], across[k : k + chunk]) for k in range(0, len(boxes), chunk)
    ]
    return torch.cat(pooled) if pooled else maps.new_zeros(0, maps.shape[0], bins, bins)


def _two_products(by_row: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """(H, W, C), (N, P, H), (N, P, W) -> (N, C, P, P)."""
    num, bins, height = down.shape
    rows = down.reshape(num * bins, height) @ by_row.reshape(height, -1)  # (N P, W C)
    rows = rows.reshape(num, bins, by_row.shape[1], by_row.shape[2])
    return (across[:, None] @ rows).permute(0, 3, 1, 2)  # (N, 1, P, W) @ (N, P, W, C)


def _axis_weights(start: Tensor, length: Tensor, size: int, bins: int, sampling_ratio: int) -> Tensor:
    """What each of `size` positions adds to each bin along one axis: (N, bins, size).

    A sample at y takes 1 - |y - k| of position k (linear interpolation), y held inside; samples more than a pixel outside
    count as 0.
    """
    width = length / bins  # of a bin
    num = torch.full_like(start, sampling_ratio) if sampling_ratio else width.ceil()
    most = int(num.max()) if len(num) else 0
    sample = torch.arange(most, device=start.device, dtype=start.dtype)
    at = torch.arange(bins, device=start.device, dtype=start.dtype)
    inside = (sample + 0.5) / num.clamp(min=1)[:, None]  # (N, S)
    y = start[:, None, None] + width[:, None, None] * (at[:, None] + inside[:, None])  # (N, bins, S)
    counts = (sample < num[:, None])[:, None] & (y >= -1) & (y <= size)
    y = y.clamp(0, size - 1)
    position = torch.arange(size, device=start.device, dtype=start.dtype)
    tent = (1 - (y[..., None] - position).abs()).clamp(min=0) * counts[..., None]
    return tent.sum(2) / num.clamp(min=1)[:, None, None]


def roi_pool(maps: Tensor, boxes: Tensor, bins: int, scale: float) -> Tensor:
    """maps (C, H, W), boxes (N, 4) -> (N, C, bins, bins): the maximum of whole pixels in each bin, 0 in empty bins.

    As in Caffe: corners are rounded to pixels, both ends count, bins overlap by rounding outwards. Where pixels tie for a
    maximum the gradient is shared.
    """
    corners = (boxes * scale + 0.5).floor().long()  # C's round(), not Python's
    down = _bin_pixels(corners[:, 1], corners[:, 3], maps.shape[1], bins)
    across = _bin_pixels(corners[:, 0], corners[:, 2], maps.shape[2], bins)
    pooled = [_pool_one(maps, *(axis[k] for axis in (*down, *across))) for k in range(len(boxes))]
    return torch.stack(pooled) if pooled else maps.new_zeros(0, maps.shape[0], bins, bins)


def _bin_pixels(first: Tensor, last: Tensor, size: int, bins: int) -> tuple[Tensor, Tensor]:
    """Pixels of each bin along one axis, (N, bins, L), and which of them count."""
    length = (last - first + 1).clamp(min=1)[:, None]
    at = torch.arange(bins, device=first.device)
    start = (at * length // bins + first[:, None]).clamp(
        0, size
    )  # in whole numbers, where rounding cannot slip
    stop = (-(-(at + 1) * length // bins) + first[:, None]).clamp(0, size)
    most = int((stop - start).max()) if len(first) else 0
    pixel = start[..., None] + torch.arange(max(most, 1), device=first.device)
    return pixel.clamp(max=size - 1), pixel < stop[..., None]


def _pool_one(
    maps: Tensor, rows: Tensor, row_counts: Tensor, columns: Tensor, column_counts: Tensor
) -> Tensor:
    low = float("-inf")
    left, right = int(columns.min()), int(columns.max()) + 1
    by_row = maps[:, :, left:right][:, rows].masked_fill(~row_counts[..., None], low).amax(2)  # (C, P, w)
    cells = by_row[:, :, columns - left].masked_fill(~column_counts, low).amax(3)  # (C, P, P)
    return cells.masked_fill(cells == low, 0)
