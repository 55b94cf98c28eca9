"""Evaluates a detector against ground-truth boxes: AP as in COCO (Lin et al. 2014, https://arxiv.org/abs/1405.0312).

pycocotools does the matching and the averaging.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import RowFault, VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import Reject, need
from vlpipe.pipeline.stage import GatherStage, Job
from vlpipe.stages.common.pixels import decode
from vlpipe.stages.common.region_rows import OBJECTS
from vlpipe.stages.common.row import RESULTS
from vlpipe.stages.evaluate.caption_metrics.java import PIP_LINE

if TYPE_CHECKING:
    from vlpipe.stages.common.detector import Detector

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Detection:
    """Detections of one image and, in the fields `true_*`, its ground truth.

    boxes (N, 4): x1, y1, x2, y2 in pixels; labels, scores, attributes (N,); attributes are None if the detector has none.
    """

    boxes: Floats
    labels: Sequence[str]
    scores: Floats
    attributes: Sequence[str | None]
    true_boxes: Floats
    true_labels: Sequence[str]
    true_attributes: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class DetectionScores(GatherStage):
    """Emits RESULTS: `ap`, `ap50`, `ap50/CLASS`, `recall50`, `attribute_right`, all from 0 to 1.

    ap: mean over the classes with a ground-truth box and over the IoU thresholds 0.50, 0.55, ... 0.95 (AP@[.5:.95]). ap50,
    recall50: AP, over these classes, and recall at an IoU of 0.5. attribute_right: among detections matched at an IoU of
    0.5 to a ground-truth box with attributes, the fraction whose predicted attribute is one of them. num_rows: number of
    these detections for attribute_right, number of ground-truth boxes for the others.
    """

    NAME: ClassVar[str] = "evaluate.detection:DetectionScores"
    VERSION: ClassVar[int] = 2
    ROWS_ARE: ClassVar[str] = "figures"
    TORCH: ClassVar[bool] = True

    detector: Weights
    min_score: Annotated[float, Field(ge=0, le=1)] = 0.01  # detections below this score are dropped
    max_detections: Annotated[int, Field(ge=1)] = 100  # per image, as in COCO

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "evaluate.detection", id=pa.string(), objects=OBJECTS, image=pa.binary())
        return RESULTS

    def preflight(self) -> list[str]:
        if find_spec("pycocotools") is None:
            return [f"evaluate.detection needs pycocotools: {PIP_LINE}"]
        return []

    def run(self, job: Job) -> None:
        from vlpipe.stages.common.detector import load

        detector = load(self.detector.path)
        rejects: list[Reject] = []
        images = list(self._detect(job, detector, rejects))
        job.reject(rejects)
        if not any(len(one.true_labels) for one in images):
            raise VlpipeError(
                "evaluate.detection: no readable image has a ground-truth box in `objects` to evaluate on"
            )
        job.emit(pa.Table.from_pylist(list(results(images, self.max_detections)), RESULTS))

    def _detect(self, job: Job, detector: Detector, rejects: list[Reject]) -> Iterator[Detection]:
        for data in job.inputs:
            for table in data.batches(["id", "objects"], ["image"]):
                for id_, objects, image in zip(
                    table["id"].to_pylist(), table["objects"].to_pylist(), table["image"], strict=True
                ):
                    try:
                        yield self._detect_one(detector, image.as_py(), objects or [])
                    except RowFault as fault:
                        rejects.append(Reject(id_, "fault", fault.why, fault.detail))

    def _detect_one(self, detector: Detector, data: bytes, objects: list[dict[str, Any]]) -> Detection:
        pixels, (across, down) = detector.pixels(decode(data))
        found = detector.model.detect(pixels, self.min_score, limit=self.max_detections)
        scale = np.array([across, down, across, down])
        names = [None if k < 0 else detector.attributes[k] for k in found.attributes.tolist()]
        return Detection(
            found.boxes.cpu().numpy().astype(np.float64) * scale,
            [detector.classes[k] for k in found.labels.tolist()],
            found.scores.cpu().numpy().astype(np.float64),
            names,
            np.array([one["box"] for one in objects], np.float64).reshape(-1, 4),
            [one["label"] for one in objects],
            [one["attributes"] or () for one in objects],
        )


@dataclass(frozen=True)
class Totals:
    """Precision and matches of the detections in a set of images.

    num_boxes: ground-truth boxes per class. precision: (10 IoU thresholds, 101 recall levels, classes). hits: one entry per
    detection that is matched at an IoU of 0.5: True if its attribute is one of the ground-truth box's, None if the detector
    or the box has no attributes.
    """

    classes: list[str]
    num_boxes: list[int]
    precision: Floats
    hits: list[bool | None]


def results(images: Sequence[Detection], max_detections: int = 100) -> Iterator[dict[str, Any]]:
    """Yields rows of RESULTS (see `DetectionScores`). `images` must have at least one ground-truth box."""
    found = evaluate(images, max_detections)
    total = sum(found.num_boxes)
    ap50 = found.precision[0].mean(0)
    yield {"name": "ap", "value": float(found.precision.mean()), "num_rows": total}
    yield {"name": "ap50", "value": float(ap50.mean()), "num_rows": total}
    for name, value, num in zip(found.classes, ap50.tolist(), found.num_boxes, strict=True):
        yield {"name": f"ap50/{name}", "value": value, "num_rows": num}
    yield {"name": "recall50", "value": len(found.hits) / total, "num_rows": total}
    right = [hit for hit in found.hits if hit is not None]
    mean = sum(right) / len(right) if right else None
    yield {"name": "attribute_right", "value": mean, "num_rows": len(right)}


def evaluate(images: Sequence[Detection], max_detections: int) -> Totals:
    """Returns the totals over `images`, computed by pycocotools, for the classes with a ground-truth box.

    There must be at least one ground-truth box.
    """
    from pycocotools.cocoeval import COCOeval

    counts = Counter(name for one in images for name in one.true_labels)
    classes = {name: k for k, name in enumerate(sorted(counts))}
    truth = [
        _annotation(k, classes[name], box)
        for k, one in enumerate(images)
        for name, box in zip(one.true_labels, one.true_boxes.tolist(), strict=True)
    ]
    found = [
        _annotation(k, classes[name], box) | {"score": score}
        for k, one in enumerate(images)
        for name, box, score in zip(one.labels, one.boxes.tolist(), one.scores.tolist(), strict=True)
        if name in classes
    ]
    with redirect_stdout(StringIO()):  # pycocotools prints progress
        true, mine = (_dataset(boxes, len(images), len(classes)) for boxes in (truth, found))
        coco = COCOeval(true, mine, "bbox")
        coco.params.areaRng, coco.params.areaRngLbl = [[0, math.inf]], ["all"]
        coco.params.maxDets = [max_detections]
        coco.evaluate()
        coco.accumulate()
    hits = [
        (given in known) if given is not None and known else None
        for given, known in _matched_attributes(images, classes, coco.evalImgs)
    ]
    return Totals(list(classes), [counts[name] for name in classes], coco.eval["precision"][..., 0, 0], hits)


def _matched_attributes(
    images: Sequence[Detection], classes: Mapping[str, int], per_image: Iterable[dict[str, Any] | None]
) -> Iterator[tuple[str | None, Sequence[str]]]:
    """Yields (predicted attribute, ground-truth attributes) of each detection that is matched at an IoU of 0.5."""
    known = [names for one in images for names in one.true_attributes]
    given = [
        attribute
        for one in images
        for name, attribute in zip(one.labels, one.attributes, strict=True)
        if name in classes
    ]
    for one in filter(None, per_image):
        for mine, true in zip(one["dtIds"], one["dtMatches"][0], strict=True):
            if true:  # 0: unmatched
                yield given[mine - 1], known[int(true) - 1]


def _annotation(image: int, category: int, box: Sequence[float]) -> dict[str, Any]:
    x, y, w, h = box[0], box[1], box[2] - box[0], box[3] - box[1]
    return {"image_id": image, "category_id": category, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}


def _dataset(annotations: list[dict[str, Any]], num_images: int, num_classes: int) -> Any:
    """Returns a pycocotools dataset. Annotation ids start at 1, because in pycocotools id 0 means unmatched."""
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = {
        "images": [{"id": k} for k in range(num_images)],
        "categories": [{"id": k} for k in range(num_classes)],
        "annotations": [one | {"id": k} for k, one in enumerate(annotations, 1)],
    }
    coco.createIndex()
    return coco
