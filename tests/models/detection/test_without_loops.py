"""Suppression and RoIPool, which decide and pool all boxes at once, against loops over the boxes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vlpipe.models.detection.boxes import iou
from vlpipe.models.detection.nms import nms, surviving_confidence
from vlpipe.models.detection.roi import roi_pool


def looped_nms(
    boxes: Tensor, scores: Tensor, threshold: float, groups: Tensor | None = None, limit: int | None = None
) -> Tensor:
    left = scores.argsort(descending=True, stable=True)
    kept: list[Tensor] = []
    while len(left) and (limit is None or len(kept) < limit):
        first, left = left[0], left[1:]
        kept.append(first)
        goes = iou(boxes[first][None], boxes[left])[0] > threshold
        if groups is not None:
            goes &= groups[left] == groups[first]
        left = left[~goes]
    return torch.stack(kept) if kept else left


def looped_confidence(boxes: Tensor, probs: Tensor, threshold: float) -> Tensor:
    num, classes = probs.shape[0], torch.arange(probs.shape[1])
    overlaps = iou(boxes, boxes) > threshold
    overlaps.fill_diagonal_(False)
    alive = torch.ones_like(probs, dtype=torch.bool)
    order = probs.argsort(dim=0, descending=True, stable=True)
    for rank in range(num):
        best = order[rank]
        stays = alive[best, classes]
        alive &= ~(overlaps[best] & stays[:, None]).T
    return torch.where(alive, probs, torch.zeros_like(probs)).amax(1)


def looped_pool(maps: Tensor, boxes: Tensor, bins: int, scale: float) -> Tensor:
    corners = (boxes * scale + 0.5).floor().long()
    down = bin_pixels(corners[:, 1], corners[:, 3], maps.shape[1], bins)
    across = bin_pixels(corners[:, 0], corners[:, 2], maps.shape[2], bins)
    return torch.stack([pool_one(maps, *(axis[k] for axis in (*down, *across))) for k in range(len(boxes))])


def bin_pixels(first: Tensor, last: Tensor, size: int, bins: int) -> tuple[Tensor, Tensor]:
    length = (last - first + 1).clamp(min=1)[:, None]
    at = torch.arange(bins)
    start = (at * length // bins + first[:, None]).clamp(0, size)
    stop = (-(-(at + 1) * length // bins) + first[:, None]).clamp(0, size)
    pixel = start[..., None] + torch.arange(max(int((stop - start).max()), 1))
    return pixel.clamp(max=size - 1), pixel < stop[..., None]


def pool_one(
    maps: Tensor, rows: Tensor, row_counts: Tensor, columns: Tensor, column_counts: Tensor
) -> Tensor:
    low = float("-inf")
    left, right = int(columns.min()), int(columns.max()) + 1
    by_row = maps[:, :, left:right][:, rows].masked_fill(~row_counts[..., None], low).amax(2)
    cells = by_row[:, :, columns - left].masked_fill(~column_counts, low).amax(3)
    return cells.masked_fill(cells == low, 0)


def heaps(num: int, seed: int) -> tuple[Tensor, torch.Generator]:
    """Boxes around few places in an image of 1000 x 600, as proposals are; a tenth of them repeat others."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.rand(8, 2, generator=generator) * torch.tensor([1000.0, 600])
    sides = 40 + 250 * torch.rand(8, 2, generator=generator)
    at = torch.randint(8, (num,), generator=generator)
    centres = places[at] + 0.3 * sides[at] * torch.randn(num, 2, generator=generator)
    half = sides[at] * (0.4 * torch.randn(num, 2, generator=generator)).exp() / 2
    boxes = torch.cat([centres - half, centres + half], dim=1)
    boxes[num - num // 10 :] = boxes[: num // 10]
    return boxes, generator


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("num", [1, 2, 63, 64, 65, 200])
@pytest.mark.parametrize("block", [64, 1024])
def test_nms(num: int, threshold: float, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlpipe.models.detection.nms.CPU_BLOCK", block)
    for seed in range(3):
        boxes, generator = heaps(num, seed)
        groups = torch.randint(3, (num,), generator=generator)
        for scores in (
            torch.rand(num, generator=generator),
            torch.randint(5, (num,), generator=generator).float(),
        ):
            for limit in (None, 17):
                for of in (None, groups):
                    want = looped_nms(boxes, scores, threshold, of, limit)
                    assert nms(boxes, scores, threshold, of, limit).tolist() == want.tolist()


def test_nms_of_a_chain() -> None:
    """Each box overlaps the next one only, so that each decides about the next: the largest number of rounds."""
    left = torch.arange(300.0) * 6
    boxes = torch.stack([left, torch.zeros(300), left + 10, torch.ones(300)], dim=1)
    scores = -torch.arange(300.0)
    assert nms(boxes, scores, 0.2).tolist() == list(range(0, 300, 2))
    assert nms(boxes, scores, 0.2, limit=7).tolist() == list(range(0, 14, 2))


def test_nms_of_nothing_and_of_empty_boxes() -> None:
    assert nms(torch.zeros(0, 4), torch.zeros(0), 0.5).shape == (0,)
    assert nms(torch.zeros(0, 4), torch.zeros(0), 0.5).dtype == torch.int64
    assert nms(torch.zeros(5, 4), torch.ones(5), 0.5).tolist() == [0, 1, 2, 3, 4]
    assert nms(torch.zeros(5, 4), torch.ones(5), 0.5, limit=0).tolist() == []


@pytest.mark.parametrize("chunk", [1, 1 << 12, 1 << 20])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.99])
def test_surviving_confidence(threshold: float, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlpipe.models.detection.nms.CHUNK_BYTES", chunk)
    for seed in range(3):
        boxes, generator = heaps(90, seed)
        probs = (2 * torch.randn(90, 23, generator=generator)).softmax(1)
        tied = probs.mul(10).round().div(10)
        for values in (probs, tied, torch.zeros(90, 23)):
            want = looped_confidence(boxes, values, threshold)
            torch.testing.assert_close(surviving_confidence(boxes, values, threshold), want, rtol=0, atol=0)


def test_surviving_confidence_of_nothing_and_of_one() -> None:
    assert surviving_confidence(torch.zeros(0, 4), torch.zeros(0, 3), 0.3).shape == (0,)
    one = torch.tensor([[0.0, 0, 9, 9]])
    assert surviving_confidence(one, torch.tensor([[0.25, 0.5]]), 0.3).tolist() == [0.5]


@pytest.mark.parametrize("bins", [1, 2, 7, 14])
@pytest.mark.parametrize("size", [(38, 63), (5, 9), (1, 1), (2, 40)])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_roi_pool(size: tuple[int, int], bins: int, kind: torch.dtype) -> None:
    boxes, generator = heaps(40, 0)
    boxes[:4] = torch.tensor(
        [[-900.0, -900, -800, -700], [5000, 0, 6000, 90], [7, 7, 7, 7], [-99, -99, 2000, 2000]]
    )
    for maps in (torch.randn(6, *size, generator=generator), torch.randint(-1, 2, (6, *size)).float()):
        got = roi_pool(maps.to(kind), boxes, bins, 1 / 16)
        assert got.is_contiguous()
        torch.testing.assert_close(got, looped_pool(maps.to(kind), boxes, bins, 1 / 16), rtol=0, atol=0)


def test_roi_pool_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes, generator = heaps(20, 1)
    maps = torch.randn(3, 30, 40, generator=generator)
    monkeypatch.setattr("vlpipe.models.detection.roi.CHUNK_VALUES", 7 * 3 * 49)
    assert torch.equal(roi_pool(maps, boxes, 7, 1 / 16), looped_pool(maps, boxes, 7, 1 / 16))


def gradient(pool: Callable[..., Tensor], maps: Tensor, boxes: Tensor) -> Tensor:
    maps = maps.clone().requires_grad_()
    pooled = pool(maps, boxes, 7, 1 / 16)
    (pooled * torch.arange(pooled.numel(), dtype=maps.dtype).view_as(pooled)).sum().backward()
    assert maps.grad is not None
    return maps.grad


def test_gradients_of_roi_pool_are_those_of_the_loop() -> None:
    boxes, generator = heaps(30, 2)
    maps = torch.randn(4, 38, 63, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(gradient(roi_pool, maps, boxes), gradient(looped_pool, maps, boxes))


def test_gradients_of_tied_pixels_have_the_sum_of_the_loop() -> None:
    boxes, generator = heaps(30, 2)
    maps = torch.randint(2, (4, 38, 63), generator=generator).double()
    got, want = (gradient(pool, maps, boxes) for pool in (roi_pool, looped_pool))
    torch.testing.assert_close(got.sum((1, 2)), want.sum((1, 2)))
    assert bool((got >= 0).all())


class Calls(TorchDispatchMode):
    """Counts the operations of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.of: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.of[func.__name__] += 1
        return func(*args, **(kwargs or {}))


def calls(of: Callable[[], Any]) -> Counter[str]:
    with Calls() as seen:
        of()
    return seen.of


def test_the_number_of_operations_does_not_depend_on_the_number_of_boxes() -> None:
    maps = torch.rand(2, 38, 63)
    boxes = heaps(50, 3)[0]
    few, many = (calls(lambda n=n: roi_pool(maps, boxes.repeat(n, 1), 7, 1 / 16)) for n in (1, 10))
    assert few == many
    boxes, generator = heaps(400, 4)
    scores, probs = torch.rand(400, generator=generator), torch.rand(400, 5, generator=generator)
    kept = len(nms(boxes, scores, 0.5))
    assert sum(calls(lambda: nms(boxes, scores, 0.5)).values()) < 5 * kept
    assert sum(calls(lambda: surviving_confidence(boxes, probs, 0.3)).values()) < 400
