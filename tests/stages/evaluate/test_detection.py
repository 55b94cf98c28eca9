"""AP50 in closed form, and equal to pycocotools on random detections."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest

from vlpipe.stages.evaluate.detection import Detection, average_precision, matches, pair_iou, results


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


def test_average_precision_closed_forms() -> None:
    assert average_precision([(0.9, True), (0.8, True)], 2) == 1
    assert average_precision([], 3) == 0
    assert average_precision([(0.9, False)], 1) == 0
    # right, wrong, right of 2 true ones: precision 1 up to recall 0.5 (51 recalls), 2/3 above (50)
    assert average_precision([(0.9, True), (0.1, True), (0.5, False)], 2) == pytest.approx(
        (51 + 50 * 2 / 3) / 101
    )
    # one of 4 found: recalls 0 to 0.25 are 26 of the 101
    assert average_precision([(0.9, True)], 4) == pytest.approx(26 / 101)


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
    assert list(matches(one, "cat")) == [(0.9, True, True), (0.7, False, None), (0.5, False, None)]
    found = {row["name"]: (row["value"], row["num_rows"]) for row in results([one])}
    assert found == {
        "ap50": (pytest.approx(51 / 101), 2),
        "ap50/cat": (pytest.approx(51 / 101), 2),
        "recall50": (0.5, 2),
        "attribute_right": (1.0, 1),
    }
    np.testing.assert_allclose(pair_iou(one.boxes[:2], one.true_boxes), [[1, 0], [0.9, 0]])


def test_ap50_equals_pycocotools() -> None:
    coco = pytest.importorskip("pycocotools.coco", reason="the extra `eval` is not installed")
    from pycocotools.cocoeval import COCOeval

    rng = np.random.default_rng(0)
    names, images = ["a", "b", "c"], []
    for _ in range(20):
        num = int(rng.integers(1, 5))
        low = rng.uniform(0, 60, (num, 2))
        true = np.concatenate([low, low + rng.uniform(10, 40, (num, 2))], 1)
        boxes = np.repeat(true, 2, 0) + rng.normal(0, 4, (2 * num, 4))
        true_labels = [names[k] for k in rng.integers(0, 3, num)]
        labels = [label if rng.random() < 0.7 else "b" for label in np.repeat(true_labels, 2)]
        scores = rng.permutation(2 * num) / (2 * num) + rng.random() * 1e-3
        images.append(image(boxes.tolist(), labels, scores.tolist(), true.tolist(), true_labels))
    truth = {
        "images": [{"id": k} for k in range(20)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(names, 1)],
        "annotations": [],
    }
    said = []
    for k, one in enumerate(images):
        for box, label in zip(one.true_boxes.tolist(), one.true_labels, strict=True):
            x, y, w, h = box[0], box[1], box[2] - box[0], box[3] - box[1]
            truth["annotations"].append(
                {"id": len(truth["annotations"]) + 1, "image_id": k, "category_id": names.index(label) + 1}
                | {"bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
            )
        for box, label, score in zip(one.boxes.tolist(), one.labels, one.scores.tolist(), strict=True):
            x, y, w, h = box[0], box[1], box[2] - box[0], box[3] - box[1]
            said.append(
                {"image_id": k, "category_id": names.index(label) + 1, "bbox": [x, y, w, h], "score": score}
            )
    with contextlib.redirect_stdout(io.StringIO()):
        known = coco.COCO()
        known.dataset = truth
        known.createIndex()
        judge = COCOeval(known, known.loadRes(said), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    ours = next(row["value"] for row in results(images) if row["name"] == "ap50")
    assert ours == pytest.approx(judge.stats[1], abs=1e-9)
