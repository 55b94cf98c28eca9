"""Boxes, anchors and suppression against closed forms and slow references in plain Python."""

from __future__ import annotations

import math

import pytest
import torch

from vlpipe.models.detection.anchors import cell_anchors, grid_anchors
from vlpipe.models.detection.boxes import MAX_LOG_SCALE, ROI_WEIGHTS, area, clip, decode, encode, iou
from vlpipe.models.detection.matching import BACKGROUND, IGNORED, OBJECT, match, sample
from vlpipe.models.detection.nms import nms, surviving_confidence


def random_boxes(num: int, seed: int = 0, side: float = 60) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(num, 2, generator=generator) * side
    return torch.cat([low, low + 1 + torch.rand(num, 2, generator=generator) * side / 2], dim=1)


def slow_iou(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = width * height
    either = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return both / either if either > 0 else 0.0


def slow_nms(boxes: list[list[float]], scores: list[float], threshold: float) -> list[int]:
    kept: list[int] = []
    for one in sorted(range(len(boxes)), key=lambda k: (-scores[k], k)):
        if all(slow_iou(boxes[one], boxes[other]) <= threshold for other in kept):
            kept.append(one)
    return kept


def test_overlap_closed_forms() -> None:
    one = torch.tensor([[0.0, 0, 4, 2]])
    others = torch.tensor([[0.0, 0, 4, 2], [2, 0, 6, 2], [4, 0, 8, 2], [1, 1, 1, 1], [9, 9, 5, 5]])
    torch.testing.assert_close(iou(one, others), torch.tensor([[1, 4 / 12, 0, 0, 0]]))
    assert area(others).tolist() == [8, 8, 8, 0, 0]
    empty = torch.zeros(1, 4)
    assert iou(empty, empty).item() == 0  # not 0 / 0
    assert clip(torch.tensor([[-3.0, 1, 50, 70]]), (60, 40)).tolist() == [[0, 1, 40, 60]]


def test_offsets_closed_form_and_round_trip() -> None:
    anchor, box = torch.tensor([[0.0, 0, 10, 20]]), torch.tensor([[5.0, 10, 25, 20]])
    wanted = torch.tensor([[1.0, 0.25, math.log(2), math.log(0.5)]])
    torch.testing.assert_close(encode(anchor, box, (1, 1, 1, 1)), wanted)
    torch.testing.assert_close(encode(anchor, box, ROI_WEIGHTS), wanted * torch.tensor([10.0, 10, 5, 5]))
    anchors, boxes = random_boxes(50), random_boxes(50, seed=1)
    torch.testing.assert_close(decode(anchors, encode(anchors, boxes, ROI_WEIGHTS), ROI_WEIGHTS), boxes)


def test_growth_is_limited() -> None:
    grown = decode(torch.tensor([[0.0, 0, 16, 16]]), torch.tensor([[0.0, 0, 99, 99]]), (1, 1, 1, 1))
    torch.testing.assert_close(grown, torch.tensor([[-492.0, -492, 508, 508]]))
    assert math.isclose(16 * math.exp(MAX_LOG_SCALE), 1000)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7])
def test_nms_equals_the_slow_one_ties_included(threshold: float) -> None:
    for seed in range(5):
        boxes = random_boxes(60, seed)
        scores = torch.randint(0, 9, (60,), generator=torch.Generator().manual_seed(seed)).float()
        kept = slow_nms(boxes.tolist(), scores.tolist(), threshold)
        assert nms(boxes, scores, threshold).tolist() == kept
        assert nms(boxes, scores, threshold, limit=4).tolist() == kept[:4]


def test_nms_by_class_is_nms_of_each_class() -> None:
    boxes, scores = random_boxes(80), torch.rand(80, generator=torch.Generator().manual_seed(2))
    groups = torch.arange(80) % 3
    wanted: list[int] = []
    for group in range(3):
        rows = (groups == group).nonzero().flatten()
        wanted += rows[nms(boxes[rows], scores[rows], 0.4)].tolist()
    assert nms(boxes, scores, 0.4, groups).tolist() == sorted(wanted, key=lambda k: -float(scores[k]))
    assert nms(torch.zeros(0, 4), torch.zeros(0), 0.5).tolist() == []
    assert nms(torch.zeros(2, 4), torch.ones(2), 0.5).tolist() == [0, 1]  # empty boxes overlap nothing


def test_surviving_confidence_equals_one_suppression_per_class() -> None:
    boxes, probs = random_boxes(40), torch.rand(40, 6, generator=torch.Generator().manual_seed(3))
    probs[:, 2] = probs[:, 2].round(decimals=1)  # ties
    wanted = [0.0] * 40
    for column in range(6):
        scores = probs[:, column].tolist()
        for row in slow_nms(boxes.tolist(), scores, 0.3):
            wanted[row] = max(wanted[row], scores[row])
    torch.testing.assert_close(surviving_confidence(boxes, probs, 0.3), torch.tensor(wanted))


def test_anchors() -> None:
    cell = cell_anchors([32], [0.5, 1, 2])
    torch.testing.assert_close(area(cell), torch.full((3,), 1024.0))
    sides = cell[:, 2:] - cell[:, :2]
    torch.testing.assert_close(sides[:, 1] / sides[:, 0], torch.tensor([0.5, 1, 2]))
    grid = grid_anchors(cell, 2, 3, 16)
    assert grid.shape == (18, 4)
    torch.testing.assert_close(grid[3:6], cell + torch.tensor([16.0, 0, 16, 0]))  # along x first
    torch.testing.assert_close(grid[9:12], cell + torch.tensor([0.0, 16, 0, 16]))


def test_matching() -> None:
    true = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [50, 50, 60, 60]])
    boxes = torch.tensor(
        [[0.0, 0, 10, 9], [0, 0, 10, 5], [24, 0, 34, 10], [70, 70, 80, 80], [56, 50, 66, 60]]
    )
    which, kind = match(boxes, true, 0.3, 0.7)  # overlaps 0.9, 0.5, 6 / 14, 0, 4 / 16
    assert which[[0, 1, 2, 4]].tolist() == [0, 0, 1, 2]
    assert kind.tolist() == [OBJECT, IGNORED, IGNORED, BACKGROUND, BACKGROUND]
    _, kind = match(boxes, true, 0.3, 0.7, best_for_each=True)
    assert kind.tolist() == [OBJECT, IGNORED, OBJECT, BACKGROUND, OBJECT]
    assert match(boxes, true[:0], 0.3, 0.7)[1].tolist() == [BACKGROUND] * 5
    half = boxes[1:2]  # an overlap of exactly `low` is not below it, one of exactly `high` is from it
    assert [int(match(half, true, low, high)[1]) for low, high in ((0.5, 0.7), (0.3, 0.5))] == [
        IGNORED,
        OBJECT,
    ]
    far = torch.tensor([[90.0, 90, 99, 99]])  # no box overlaps it: then none is its best
    assert match(boxes, far, 0.3, 0.7, best_for_each=True)[1].tolist() == [BACKGROUND] * 5


def test_sampling_keeps_the_share_and_fills_with_background() -> None:
    kind = torch.tensor([OBJECT] * 30 + [BACKGROUND] * 100 + [IGNORED] * 7)
    objects, background = sample(kind, 40, 0.25)
    assert (len(objects), len(background)) == (10, 30)
    assert set(objects.tolist()) <= set(range(30))
    assert set(background.tolist()) <= set(range(30, 130))
    assert [len(part) for part in sample(kind[:33], 40, 0.5)] == [20, 3]
