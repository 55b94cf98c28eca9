"""RoIAlign and RoIPool against slow references in plain Python, closed forms, and their gradients."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from vlpipe.models.detection.roi import roi_align, roi_pool

BOXES = torch.tensor(
    [
        [10.0, 20, 90, 130],
        [0, 0, 16, 16],
        [-30, -20, 40, 50],  # out of the image on every side
        [100, 90, 300, 400],
        [33.3, 44.4, 35.0, 45.0],  # below one pixel of the maps
        [40, 40, 40, 60],  # no width
        [500, 500, 600, 600],  # outside
        [8, 8, 24, 24],  # halves of a pixel
    ]
)


def interpolated(maps: list[list[float]], y: float, x: float) -> float:
    height, width = len(maps), len(maps[0])
    if y < -1 or y > height or x < -1 or x > width:
        return 0.0
    y, x = max(y, 0.0), max(x, 0.0)
    y0, x0 = int(y), int(x)
    if y0 >= height - 1:
        y0 = y1 = height - 1
        y = float(y0)
    else:
        y1 = y0 + 1
    if x0 >= width - 1:
        x0 = x1 = width - 1
        x = float(x0)
    else:
        x1 = x0 + 1
    ly, lx = y - y0, x - x0
    return (
        (1 - ly) * (1 - lx) * maps[y0][x0]
        + (1 - ly) * lx * maps[y0][x1]
        + ly * (1 - lx) * maps[y1][x0]
        + ly * lx * maps[y1][x1]
    )


def slow_align(
    maps: list[list[float]], box: list[float], bins: int, scale: float, ratio: int, aligned: bool
) -> list[list[float]]:
    shift = 0.5 if aligned else 0.0
    left, top = box[0] * scale - shift, box[1] * scale - shift
    width, height = (box[2] - box[0]) * scale, (box[3] - box[1]) * scale
    if not aligned:
        width, height = max(width, 1.0), max(height, 1.0)
    num_y, num_x = (ratio or math.ceil(side / bins) for side in (height, width))
    out = []
    for i in range(bins):
        row = []
        for j in range(bins):
            total = 0.0
            for a in range(num_y):
                for b in range(num_x):
                    y = top + height / bins * (i + (a + 0.5) / num_y)
                    x = left + width / bins * (j + (b + 0.5) / num_x)
                    total += interpolated(maps, y, x)
            row.append(total / max(num_y * num_x, 1))
        out.append(row)
    return out


def slow_pool(maps: list[list[float]], box: list[float], bins: int, scale: float) -> list[list[float]]:
    height, width = len(maps), len(maps[0])
    left, top, right, bottom = (math.floor(v * scale + 0.5) for v in box)
    bin_w, bin_h = (Fraction(max(n, 1), bins) for n in (right - left + 1, bottom - top + 1))
    out = []
    for i in range(bins):
        row = []
        for j in range(bins):
            ys = range(
                min(max(math.floor(i * bin_h) + top, 0), height),
                min(max(math.ceil((i + 1) * bin_h) + top, 0), height),
            )
            xs = range(
                min(max(math.floor(j * bin_w) + left, 0), width),
                min(max(math.ceil((j + 1) * bin_w) + left, 0), width),
            )
            row.append(max((maps[y][x] for y in ys for x in xs), default=0.0))
        out.append(row)
    return out


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 1, 2])
@pytest.mark.parametrize("bins", [1, 3, 7])
def test_align_equals_the_slow_one(aligned: bool, ratio: int, bins: int) -> None:
    maps = torch.rand(3, 9, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = roi_align(maps, BOXES.double(), bins, 1 / 16, ratio, aligned)
    assert found.shape == (len(BOXES), 3, bins, bins)
    for k, box in enumerate(BOXES.tolist()):
        for c in range(3):
            wanted = slow_align(maps[c].tolist(), box, bins, 1 / 16, ratio, aligned)
            torch.testing.assert_close(found[k, c], torch.tensor(wanted, dtype=torch.float64))


def test_align_of_a_slope_is_the_slope_at_the_middle_of_each_bin() -> None:
    """Linear maps are their own interpolation, so a bin's mean is the value at its centre."""
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij")
    box = torch.tensor([[48.0, 32, 240, 160]])  # 3 to 15 and 2 to 10 pixels of the maps
    found = roi_align((2 * x + 5 * y)[None], box, 4, 1 / 16)
    middle_x, middle_y = 3 + 3 * (torch.arange(4) + 0.5) - 0.5, 2 + 2 * (torch.arange(4) + 0.5) - 0.5
    torch.testing.assert_close(found[0, 0], 2 * middle_x[None] + 5 * middle_y[:, None])


def test_without_alignment_it_is_half_a_pixel_off() -> None:
    x = torch.arange(30.0).expand(1, 20, 30)
    box = torch.tensor([[48.0, 32, 240, 160]])
    shift = roi_align(x, box, 4, 1 / 16, aligned=False) - roi_align(x, box, 4, 1 / 16)
    torch.testing.assert_close(shift, torch.full_like(shift, 0.5))


@pytest.mark.parametrize("bins", [1, 3, 7, 14])
def test_pool_equals_the_slow_one(bins: int) -> None:
    maps = torch.randn(3, 9, 12, generator=torch.Generator().manual_seed(0))
    found = roi_pool(maps, BOXES, bins, 1 / 16)
    for k, box in enumerate(BOXES.tolist()):
        for c in range(3):
            torch.testing.assert_close(
                found[k, c], torch.tensor(slow_pool(maps[c].tolist(), box, bins, 1 / 16))
            )


def test_gradients_are_those_of_finite_differences() -> None:
    maps = torch.rand(2, 6, 7, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[5.0, 10, 90, 70], [-9, 0, 30, 99]], dtype=torch.float64)
    for aligned in (True, False):
        assert torch.autograd.gradcheck(lambda m, a=aligned: roi_align(m, boxes, 3, 1 / 16, 0, a), maps)
    assert torch.autograd.gradcheck(lambda m: roi_pool(m, boxes, 3, 1 / 16), maps)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = torch.rand(4, 9, 12)
    whole = roi_align(maps, BOXES, 7, 1 / 16)
    monkeypatch.setattr("vlpipe.models.detection.roi.CHUNK_VALUES", 1)
    torch.testing.assert_close(roi_align(maps, BOXES, 7, 1 / 16), whole)
    assert (
        roi_align(maps, BOXES[:0], 7, 1 / 16).shape
        == roi_pool(maps, BOXES[:0], 7, 1 / 16).shape
        == (0, 4, 7, 7)
    )
