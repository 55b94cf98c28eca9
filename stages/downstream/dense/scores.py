"""Scores of dense predictions on held-out pictures: mean IoU of classes of pixels, AP of boxes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import Reject, need
from vlpipe.pipeline.stage import GatherStage, Job, Stage
from vlpipe.stages.common.batches import Pixels, read_images
from vlpipe.stages.common.region_rows import OBJECTS
from vlpipe.stages.common.row import RESULTS
from vlpipe.stages.evaluate.caption_metrics.java import PIP_LINE
from vlpipe.stages.evaluate.detection import Detection, results
from vlpipe.stages.loading.makers.base import IGNORE
from vlpipe.stages.loading.makers.downstream.pixel_classes import pixel_classes

if TYPE_CHECKING:
    from vlpipe.stages.common.model import Loaded

NMS_IOU = 0.6  # FCOS
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class SegmentationScores(GatherStage):
    """Emits RESULTS: `miou`, the mean over the classes that occur of the IoU of all their pixels, `iou/K` of each class, and
    `pixel_accuracy`; num_rows of the last is the number of pixels.

    Pixels are those of the model's square input, whose classes are read without interpolation; those without a class are
    left out. Everingham et al. 2015 (PASCAL VOC), https://doi.org/10.1007/s11263-014-0733-5.
    """

    NAME: ClassVar[str] = "downstream.dense.scores:SegmentationScores"
    ROWS_ARE: ClassVar[str] = "figures"
    TORCH: ClassVar[bool] = True

    model: Weights
    batch_size: Annotated[int, Field(ge=1)] = 64

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "downstream.dense", id=pa.string(), image=pa.binary(), mask=pa.binary())
        return RESULTS

    def preflight_after(self, stages: Mapping[str, Stage]) -> list[str]:
        from vlpipe.models.interface.image_capabilities import Segments
        from vlpipe.stages.common.model import capability_problems

        return capability_problems(self.model, stages, [Segments])

    def run(self, job: Job) -> None:
        from vlpipe.models.interface.image_capabilities import Segments
        from vlpipe.stages.common.model import load

        loaded = load(self.model, needs=[Segments])
        num, size = int(loaded.model.config.num_classes), loaded.image_size
        counts = np.zeros((num, num), np.int64)
        rejects: list[Reject] = []
        for part in _parts(_images(job, size, ["mask"], rejects), self.batch_size):
            true = np.stack([pixel_classes(row["mask"], size, num, row["id"]) for row, _ in part])
            logits = _outputs(loaded, [pixels for _, pixels in part], "pixel_logits")
            counts += confusion(true, logits.argmax(1), num)
        job.reject(rejects)
        if not counts.any():
            raise VlpipeError("downstream.dense: no readable picture has a pixel with a class")
        job.emit(pa.Table.from_pylist(segmentation(counts), RESULTS))


def confusion(true: Counts, found: Counts, num: int) -> Counts:
    """Returns the number of pixels (num, num) of each true class by found class, of true class IGNORE none."""
    counted = true != IGNORE
    pairs = true[counted] * num + found[counted]
    return np.bincount(pairs, minlength=num * num).reshape(num, num)


def segmentation(counts: Counts) -> list[dict[str, Any]]:
    """Returns RESULTS rows of a confusion matrix (true, found)."""
    hits, of_class = np.diag(counts), counts.sum(1)
    union = of_class + counts.sum(0) - hits
    there = of_class > 0
    iou = hits[there] / union[there]
    rows = [{"name": "miou", "value": float(iou.mean()), "num_rows": int(there.sum())}]
    for k, value in zip(np.flatnonzero(there).tolist(), iou.tolist(), strict=True):
        rows.append({"name": f"iou/{k}", "value": value, "num_rows": int(of_class[k])})
    total = int(counts.sum())
    return [*rows, {"name": "pixel_accuracy", "value": float(hits.sum() / total), "num_rows": total}]


@dataclass(frozen=True, kw_only=True)
class BoxScores(GatherStage):
    """Emits RESULTS `ap`, `ap50`, `ap50/CLASS` and `recall50`, as `evaluate.detection:DetectionScores`, of a model that
    finds objects from patches.

    classes: the names of the model's classes, in order. Boxes of one class that overlap by more than 0.6 give the surest.
    """

    NAME: ClassVar[str] = "downstream.dense.scores:BoxScores"
    ROWS_ARE: ClassVar[str] = "figures"
    TORCH: ClassVar[bool] = True

    model: Weights
    classes: tuple[str, ...]
    min_score: Annotated[float, Field(ge=0, le=1)] = 0.01
    max_detections: Annotated[int, Field(ge=1)] = 100
    batch_size: Annotated[int, Field(ge=1)] = 64

    def schema(self, inp: pa.Schema) -> pa.Schema:
        sizes = {"width": pa.int32(), "height": pa.int32()}
        need(inp, "downstream.dense", id=pa.string(), objects=OBJECTS, image=pa.binary(), **sizes)
        return RESULTS

    def preflight(self) -> list[str]:
        if find_spec("pycocotools") is None:
            return [f"downstream.dense needs pycocotools: {PIP_LINE}"]
        return []

    def preflight_after(self, stages: Mapping[str, Stage]) -> list[str]:
        from vlpipe.models.interface.image_capabilities import FindsObjects
        from vlpipe.stages.common.model import capability_problems

        return capability_problems(self.model, stages, [FindsObjects])

    def run(self, job: Job) -> None:
        from vlpipe.models.interface.image_capabilities import FindsObjects
        from vlpipe.stages.common.model import load

        loaded = load(self.model, needs=[FindsObjects])
        num = int(loaded.model.config.num_classes)
        if num != len(self.classes):
            raise VlpipeError(f"downstream.dense: the model has {num} classes, got {len(self.classes)} names")
        images: list[Detection] = []
        rejects: list[Reject] = []
        columns = ["objects", "width", "height"]
        for part in _parts(_images(job, loaded.image_size, columns, rejects), self.batch_size):
            found = _outputs(loaded, [pixels for _, pixels in part], "patch_objects")
            images += [self._detection(row, one) for (row, _), one in zip(part, found, strict=True)]
        job.reject(rejects)
        if not any(len(one.true_labels) for one in images):
            raise VlpipeError("downstream.dense: no readable picture has a ground-truth box in `objects`")
        rows = results(images, self.max_detections)
        job.emit(pa.Table.from_pylist([row for row in rows if row["name"] != "attribute_right"], RESULTS))

    def _detection(self, row: Mapping[str, Any], found: npt.NDArray[np.float32]) -> Detection:
        boxes, scores, labels = decoded(found, self.min_score, self.max_detections)
        size = np.array([row["width"], row["height"]] * 2, np.float64)
        objects = row["objects"] or []
        return Detection(
            boxes * size,
            [self.classes[k] for k in labels.tolist()],
            scores,
            [None] * len(labels),
            np.array([one["box"] for one in objects], np.float64).reshape(-1, 4),
            [one["label"] for one in objects],
            [() for _ in objects],
        )


def decoded(
    found: npt.NDArray[np.float32], min_score: float, limit: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], Counts]:
    """Returns boxes (K, 4) as fractions, scores and classes (K,) of one picture's patches (N, classes + 4), best first."""
    import torch

    from vlpipe.models.detection.nms import nms
    from vlpipe.models.objectives.downstream.dense import boxes_of, centres

    x = torch.from_numpy(found)
    scores = x[:, :-4].sigmoid()
    boxes = boxes_of(centres(len(x), x.device), x[None, :, -4:])[0].clamp(0, 1)
    patch, label = (scores > min_score).nonzero(as_tuple=True)
    sure = scores[patch, label]
    kept = nms(boxes[patch], sure, NMS_IOU, label, limit)
    return (
        boxes[patch][kept].double().numpy(),
        sure[kept].double().numpy(),
        label[kept].numpy(),
    )


def _images(
    job: Job, size: int, columns: Sequence[str], rejects: list[Reject]
) -> Iterator[tuple[dict[str, Any], Pixels]]:
    """Yields the id and these columns of each row whose picture can be read, and its pixels (3, size, size)."""
    heavy_columns = [name for name in columns if name == "mask"]
    light = [name for name in columns if name not in heavy_columns]
    for data in job.inputs:
        for table in data.batches(["id", *light], ["image", *heavy_columns]):
            rows = table.select(["id", *columns]).to_pylist()
            for place, pixels in read_images(table, size, rejects):
                yield rows[place], pixels


def _parts(
    found: Iterator[tuple[dict[str, Any], Pixels]], size: int
) -> Iterator[list[tuple[dict[str, Any], Pixels]]]:
    part = []
    for one in found:
        part.append(one)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part


def _outputs(loaded: Loaded, pixels: Sequence[Pixels], name: str) -> npt.NDArray[np.float32]:
    import torch

    from vlpipe.models.interface.batch import Stream

    with torch.inference_mode():
        out = loaded.outputs(image=Stream(torch.from_numpy(np.stack(pixels))))
        found: npt.NDArray[np.float32] = getattr(out, name).float().cpu().numpy()
    return found
