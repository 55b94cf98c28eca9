"""AP, recall and attributes of detections in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from vlpipe.stages.evaluate.detection import Detection, results


def image(
    boxes: list[list[float]],
    labels: list[str],
    scores: list[float],
    true: list[list[float]],
    true_labels: list[str],
    attributes: list[str | None] | None = None,
    true_attributes: list[list[str]] | None = None,
) -> Detection:
    return Detection(
        np.array(boxes, float).reshape(-1, 4),
        labels,
        np.array(scores, float),
        attributes or [None] * len(labels),
        np.array(true, float).reshape(-1, 4),
        true_labels,
        true_attributes or [[]] * len(true_labels),
    )


def figures(*images: Detection, **kw: int) -> dict[str, tuple[float, int]]:
    return {row["name"]: (row["value"], row["num_rows"]) for row in results(images, **kw)}


def test_average_precision_closed_forms() -> None:
    boxes = [[0, 0, 10, 10], [50, 50, 60, 60], [80, 80, 90, 90], [20, 20, 30, 30]]
    two = image(boxes[:2], ["a"] * 2, [0.9, 0.8], boxes[:2], ["a"] * 2)
    assert figures(two)["ap"] == figures(two)["ap50"] == (pytest.approx(1), 2)
    none = image([], [], [], boxes[:3], ["a"] * 3)
    assert figures(none) == {
        "ap": (0, 3),
        "ap50": (0, 3),
        "ap50/a": (0, 3),
        "recall50": (0, 3),
        "attribute_right": (None, 0),
    }
    # right, wrong, right of 2 true ones: precision 1 up to recall 0.5 (51 recalls), 2/3 above (50)
    mixed = image([boxes[0], boxes[3], boxes[1]], ["a"] * 3, [0.9, 0.5, 0.1], boxes[:2], ["a"] * 2)
    assert figures(mixed)["ap50"] == (pytest.approx((51 + 50 * 2 / 3) / 101), 2)
    # one of 4 found: recalls 0 to 0.25 are 26 of the 101
    one = image(boxes[:1], ["a"], [0.9], boxes, ["a"] * 4)
    assert figures(one)["ap50"] == (pytest.approx(26 / 101), 4)
    # an IoU of 0.72 is enough at 5 of the 10 thresholds
    loose = image([[0, 0, 10, 7.2]], ["a"], [0.9], boxes[:1], ["a"])
    assert figures(loose)["ap"] == (pytest.approx(0.5), 1)
    assert figures(loose)["ap50"] == (pytest.approx(1), 1)


def test_only_so_many_detections_of_an_image_count() -> None:
    boxes = [[0, 0, 10, 10], [50, 50, 60, 60]]
    one = image(boxes, ["a"] * 2, [0.9, 0.8], boxes, ["a"] * 2)
    assert figures(one, max_detections=1)["recall50"] == (0.5, 2)


def test_detections_of_classes_without_ground_truth_are_ignored() -> None:
    boxes = [[0, 0, 10, 10], [50, 50, 60, 60]]
    attributes = ["red", "blue"]
    one = image(boxes, ["b", "a"], [0.9, 0.8], boxes[1:], ["a"], attributes, [["blue"]])
    assert figures(one)["attribute_right"] == (1, 1)
    assert set(figures(one)) == {"ap", "ap50", "ap50/a", "recall50", "attribute_right"}


def test_a_true_box_is_found_once_by_the_best_detection() -> None:
    one = image(
        boxes=[[0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60], [0, 0, 10, 4.9]],
        labels=["cat", "cat", "dog", "cat"],
        scores=[0.5, 0.9, 0.8, 0.7],
        true=[[0, 0, 10, 10], [50, 50, 60, 60]],
        true_labels=["cat", "cat"],
        attributes=["red", "blue", None, None],
        true_attributes=[["blue", "small"], []],
    )
    assert figures(one) == {
        # the best has an IoU of 0.9; at 0.95 only the third matches
        "ap": (pytest.approx(51 / 101 * (0.9 + 0.1 / 3)), 2),
        "ap50": (pytest.approx(51 / 101), 2),
        "ap50/cat": (pytest.approx(51 / 101), 2),
        "recall50": (0.5, 2),
        "attribute_right": (1.0, 1),
    }
