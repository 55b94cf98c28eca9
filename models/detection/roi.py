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
    most = sampling_ratio or (int(num.max()) if len(num) else 0)
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
    maximum the gradient is shared. All boxes are pooled at once, in chunks of CHUNK_VALUES values.
    """
    # C's round(), not Python's
    corners = (boxes * scale + 0.5).floor().long()
    if not len(boxes):
        return maps.new_zeros(0, maps.shape[0], bins, bins)
    (top, bottom), (left, right) = (
        _bin_ends(corners[:, axis], corners[:, axis + 2], maps.shape[2 - axis], bins) for axis in (1, 0)
    )
    longest = torch.stack([(bottom - top).amax(), (right - left).amax()]).tolist()  # the host waits here
    tables = _Maxima(maps, *(max(1, int(length)).bit_length() for length in longest))
    chunk = max(1, CHUNK_VALUES // (bins * bins * maps.shape[0]))
    pooled = [
        tables.of(*(ends[k : k + chunk] for ends in (top, bottom, left, right)))
        for k in range(0, len(boxes), chunk)
    ]
    return torch.cat(pooled) if len(pooled) > 1 else pooled[0]


def _bin_ends(first: Tensor, last: Tensor, size: int, bins: int) -> tuple[Tensor, Tensor]:
    """The first pixel of each bin along one axis, and the one after its last, (N, bins); equal for an empty bin."""
    length = (last - first + 1).clamp(min=1)[:, None]
    at = torch.arange(bins, device=first.device)
    # in whole numbers, where rounding cannot slip
    start = at * length // bins + first[:, None]
    stop = -(-(at + 1) * length // bins) + first[:, None]
    return start.clamp(0, size), stop.clamp(0, size)


class _Maxima:
    """The maxima of maps (C, H, W) in all windows of 2^j x 2^k pixels, j < `levels_down`, k < `levels_across`.

    A bin of any size is the union of at most four such windows, which overlap. Memory: at most levels_down x levels_across
    times the maps, 9 times for bins of up to 7 x 7 pixels.
    """

    def __init__(self, maps: Tensor, levels_down: int, levels_across: int) -> None:
        self.channels = maps.shape[0]
        tables = [
            table
            for rows in _doubled(maps.permute(1, 2, 0).contiguous(), 0, levels_down)
            for table in _doubled(rows, 1, levels_across)
        ]
        shape = levels_down, levels_across
        self.values = torch.cat([table.flatten(0, 1) for table in tables])  # (windows, C)
        sizes = torch.tensor([[table.shape[0] * table.shape[1], table.shape[1]] for table in tables])
        first = sizes[:, 0].cumsum(0) - sizes[:, 0]
        self.first, self.widths = first.view(shape).to(maps.device), sizes[:, 1].view(shape).to(maps.device)

    def of(self, top: Tensor, bottom: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Ends of bins (N, P) along both axes -> their maxima (N, C, P, P), 0 for empty bins."""
        down, height = _level(bottom - top, self.first.shape[0])
        across, width = _level(right - left, self.first.shape[1])
        down, across = down[:, :, None], across[:, None]
        first, step = self.first[down, across], self.widths[down, across]
        empty = (bottom <= top)[:, :, None] | (right <= left)[:, None]
        found: Tensor | None = None
        for y in (top, bottom - height):
            for x in (left, right - width):
                window = (first + y[:, :, None] * step + x[:, None]).masked_fill(empty, 0)
                values = self.values.index_select(0, window.flatten())
                found = values if found is None else torch.maximum(found, values)
        assert found is not None
        cells = found.view(*empty.shape, self.channels).masked_fill(empty[..., None], 0)
        return cells.permute(0, 3, 1, 2).contiguous()


def _doubled(maps: Tensor, axis: int, levels: int) -> list[Tensor]:
    """Maxima of 1, 2, 4, ... 2^(levels - 1) neighbours along an axis; its size falls by the number of neighbours - 1."""
    found = [maps]
    for level in range(levels - 1):
        last, step = found[-1], 1 << level
        num = last.shape[axis] - step
        found.append(torch.maximum(last.narrow(axis, 0, num), last.narrow(axis, step, num)))
    return found


def _level(length: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """The largest power of two that is at most each length, as exponent and as number; 1 for length 0."""
    powers = 1 << torch.arange(levels, device=length.device)
    exponent = (length[..., None] >= powers).sum(-1).clamp(min=1) - 1
    return exponent, powers[exponent]


def roi_align_images(maps: Tensor, boxes: Tensor, bins: int, scale: float, sampling_ratio: int = 2) -> Tensor:
    """`roi_align` of several images with equally many regions: (B, C, H, W), (B, R, 4) -> (B, R, C, bins, bins).

    sampling_ratio: at least 1; with as many samples everywhere, no step waits for the device. Raises ValueError for 0.
    """
    if sampling_ratio < 1:
        raise ValueError(f"roi_align_images: sampling_ratio must be at least 1, got {sampling_ratio}")
    flat = boxes.flatten(0, 1)
    low, sides = flat[:, :2] * scale - 0.5, (flat[:, 2:] - flat[:, :2]) * scale
    across, down = (
        _axis_weights(low[:, k], sides[:, k], maps.shape[3 - k], bins, sampling_ratio)
        .to(maps.dtype)
        .unflatten(0, boxes.shape[:2])
        for k in (0, 1)
    )
    rows = torch.einsum("brph,bchw->brpcw", down, maps)
    return torch.einsum("brpcw,brqw->brcpq", rows, across)
