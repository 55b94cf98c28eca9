"""Evaluates a detector against ground-truth boxes: AP at an IoU of 0.5, as in COCO.

Lin et al. 2014, https://arxiv.org/abs/1405.0312: detections of a class, in descending order of score over all images,
are each matched to the unmatched ground-truth box with the highest IoU. Precision is interpolated at 101 recall points.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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

if TYPE_CHECKING:
    from vlpipe.stages.common.detector import Detector

Floats = npt.NDArray[np.float64]
RECALLS = np.linspace(0, 1, 101)
MIN_IOU = 0.5


@dataclass(frozen=True, slots=True)
class Detection:
    """Detections of one image: boxes (N, 4), labels, scores and attributes (N,); and its ground truth, fields `true_*`."""

    boxes: Floats
    labels: Sequence[str]
    scores: Floats
    attributes: Sequence[str | None]
    true_boxes: Floats
    true_labels: Sequence[str]
    true_attributes: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class DetectionScores(GatherStage):
    """Emits RESULTS: `ap50` (mean over classes), `ap50/CLASS`, `recall50`, `attribute_right`, all from 0 to 1.

    attribute_right: among detections matched to a ground-truth box with attributes, the fraction that predict one of
    them; its num_rows counts these detections. Of the other rows, num_rows counts ground-truth boxes.
    """

    NAME: ClassVar[str] = "evaluate.detection:DetectionScores"
    ROWS_ARE: ClassVar[str] = "figures"
    TORCH: ClassVar[bool] = True

    detector: Weights
    min_score: Annotated[float, Field(ge=0, le=1)] = 0.01  # detections below this score are dropped
    max_detections: Annotated[int, Field(ge=1)] = 100  # per image, as in COCO

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "evaluate.detection", id=pa.string(), objects=OBJECTS, image=pa.binary())
        return RESULTS

    def run(self, job: Job) -> None:
        from vlpipe.stages.common.detector import load

        detector = load(self.detector.path)
        rejects: list[Reject] = []
        images = list(self._detect(job, detector, rejects))
        job.reject(rejects)
        if not any(len(one.true_labels) for one in images):
            raise VlpipeError("no readable image with a ground-truth box to evaluate on")
        job.emit(pa.Table.from_pylist(list(results(images)), RESULTS))

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


def results(images: Sequence[Detection]) -> Iterator[dict[str, Any]]:
    """Yields rows of RESULTS: `ap50` first, then each class, `recall50` and `attribute_right`."""
    counts = {
        name: sum(list(one.true_labels).count(name) for one in images)
        for name in sorted({name for one in images for name in one.true_labels})
    }
    hits = {name: [hit for one in images for hit in matches(one, name)] for name in counts}
    scored = {name: average_precision([h[:2] for h in hits[name]], num) for name, num in counts.items()}
    total = sum(counts.values())
    yield {"name": "ap50", "value": sum(scored.values()) / len(scored), "num_rows": total}
    for name, value in scored.items():
        yield {"name": f"ap50/{name}", "value": value, "num_rows": counts[name]}
    right = [hit[2] for all_hits in hits.values() for hit in all_hits if hit[2] is not None]
    num_hit = sum(hit[1] for all_hits in hits.values() for hit in all_hits)
    yield {"name": "recall50", "value": num_hit / total, "num_rows": total}
    mean = sum(right) / len(right) if right else None
    yield {"name": "attribute_right", "value": mean, "num_rows": len(right)}


def matches(one: Detection, name: str) -> Iterator[tuple[float, bool, bool | None]]:
    """Yields (score, is a true positive, is its attribute right) of one image's detections of class `name`, best first.

    The last is None for a false positive, or if the attribute of detection or box is unknown.
    """
    true = [k for k, label in enumerate(one.true_labels) if label == name]
    mine = [k for k, label in enumerate(one.labels) if label == name]
    overlaps = pair_iou(one.boxes[mine], one.true_boxes[true])
    free = np.ones(len(true), bool)
    for row in np.argsort(-one.scores[mine], kind="stable"):
        open_to = np.where(free & (overlaps[row] >= MIN_IOU), overlaps[row], -1.0)
        best = int(open_to.argmax()) if len(true) else -1
        score = float(one.scores[mine[row]])
        if best < 0 or open_to[best] < 0:
            yield score, False, None
            continue
        free[best] = False
        predicted, known = one.attributes[mine[row]], one.true_attributes[true[best]]
        yield score, True, (predicted in known) if predicted is not None and known else None


def pair_iou(a: Floats, b: Floats) -> Floats:
    """IoU of all pairs of boxes: (N, 4), (M, 4) -> (N, M)."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    both = np.clip(high - low, 0, None).prod(-1)
    sides_a, sides_b = a[:, 2:] - a[:, :2], b[:, 2:] - b[:, :2]
    either = sides_a.prod(1)[:, None] + sides_b.prod(1)[None] - both
    return both / np.maximum(either, np.finfo(np.float64).tiny)


def average_precision(hits: Sequence[tuple[float, bool]], num_true: int) -> float:
    """Returns the AP (0 to 1) of a class from the (score, is a true positive) of all its detections."""
    order = np.argsort([-score for score, _ in hits], kind="stable")
    right = np.array([hit for _, hit in hits], np.float64)[order]
    recall = right.cumsum() / num_true
    precision = right.cumsum() / np.arange(1, len(right) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]  # max precision at this recall or above
    at = np.searchsorted(recall, RECALLS, side="left")
    return float(np.append(best, 0.0)[np.minimum(at, len(best))].mean())
