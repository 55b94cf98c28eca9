"""Accuracy of a classifier of images on held-out images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import Reject, need
from vlpipe.pipeline.stage import GatherStage, Job, Stage
from vlpipe.stages.common.batches import Pixels, batch_size_problems, encode_images, read_images
from vlpipe.stages.common.row import RESULTS
from vlpipe.stages.loading.makers.label import need_label

if TYPE_CHECKING:
    import torch

TOP = 5


@dataclass(frozen=True, kw_only=True)
class Accuracy(GatherStage):
    """Emits RESULTS: `accuracy` (share of images whose class has the highest score), `accuracy@5` (is among the 5 highest),
    `accuracy_prior` (share of the most frequent class), `accuracy_se` (standard error of `accuracy`).

    The column `label` (int32) has the classes; rows without one are left out. Images are resized without a crop. Raises
    VlpipeError for a label that is no class of the model.
    """

    NAME: ClassVar[str] = "classification.accuracy:Accuracy"
    ROWS_ARE: ClassVar[str] = "figures"
    TORCH: ClassVar[bool] = True

    model: Weights
    batch_size: int = 64

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "classification.accuracy", id=pa.string(), label=pa.int32(), image=pa.binary())
        return RESULTS

    def preflight(self) -> list[str]:
        return batch_size_problems(self.batch_size)

    def preflight_after(self, stages: Mapping[str, Stage]) -> list[str]:
        from vlpipe.models.interface.image_capabilities import Classifies
        from vlpipe.stages.common.model import capability_problems

        return capability_problems(self.model, stages, [Classifies])

    def run(self, job: Job) -> None:
        import torch

        from vlpipe.models.interface.batch import Stream
        from vlpipe.models.interface.image_capabilities import Classifies
        from vlpipe.stages.common.model import load

        model = load(self.model, needs=[Classifies])
        rejects: list[Reject] = []

        @torch.inference_mode()
        def scores(pixels: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = model.outputs(image=Stream(pixels)).logits
            return found.float().cpu()

        rows = encode_images(_rows(job, model.image_size, rejects), scores, self.batch_size)
        found = []
        for (id_, label), logits in rows:
            need_label(label, len(logits), f"row {id_}")
            found.append((label, _num_better(logits, label)))
        job.reject(rejects)
        if not found:
            raise VlpipeError("classification.accuracy: there is no readable image with a label")
        labels, better = (np.array(values) for values in zip(*found, strict=True))
        accuracy = float((better == 0).mean())
        figures = {
            "accuracy": accuracy,
            f"accuracy@{TOP}": float((better < TOP).mean()),
            "accuracy_prior": float((labels == np.bincount(labels).argmax()).mean()),
            "accuracy_se": math.sqrt(accuracy * (1 - accuracy) / len(labels)),
        }
        table = [{"name": name, "value": value, "num_rows": len(labels)} for name, value in figures.items()]
        job.emit(pa.Table.from_pylist(table, RESULTS))


def _num_better(logits: torch.Tensor, label: int) -> int:
    """Returns how many classes come before `label`; of equal ones the first does. Scores that are no numbers come first."""
    own = logits[label]
    return int((~(logits <= own)).sum() + (logits[:label] == own).sum())


def _rows(job: Job, size: int, rejects: list[Reject]) -> Iterator[tuple[tuple[str, int], Pixels]]:
    """Yields ((row id, label), pixels (3, S, S)) of the rows that have both."""
    for data in job.inputs:
        for table in data.batches(["id", "label"], ["image"]):
            ids, labels = table["id"].to_pylist(), table["label"].to_pylist()
            for row, pixels in read_images(table, size, rejects):
                if labels[row] is not None:
                    yield (ids[row], labels[row]), pixels
