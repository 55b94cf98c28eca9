"""Trains an object detector on ground-truth boxes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import GatherStage, Job
from vlpipe.stages.common.region_rows import OBJECTS
from vlpipe.stages.common.row import LOSSES
from vlpipe.stages.detector_training.recipe import DetectorRecipe
from vlpipe.stages.train.progress import following
from vlpipe.stages.train.recipe import Optimisation


@dataclass(frozen=True, kw_only=True)
class TrainDetector(GatherStage, DetectorRecipe):
    """Trains a Faster R-CNN detector on the columns `image` and `objects` (see `common.region_rows`).

    Artifacts: config.json, model.safetensors, objects_vocab.txt, attributes_vocab.txt. Rows: (step, name, value) of the
    losses rpn_objectness, rpn_box, roi_class, roi_box (Faster R-CNN) and roi_attributes (bottom-up attention). A killed run
    resumes from its last checkpoint and ends with the same bytes as an uninterrupted one.
    """

    ADDED: ClassVar[frozenset[str]] = Optimisation.ADDED
    NAME: ClassVar[str] = "train.detector:TrainDetector"
    VERSION: ClassVar[int] = 2  # 2: windows are bounded in bytes
    ROWS_ARE: ClassVar[str] = "losses"
    TORCH: ClassVar[bool] = True
    LAUNCHES: ClassVar[bool] = True
    NOT_IN_KEY: ClassVar[frozenset[str]] = frozenset({"checkpoint_every", "loader_threads"})

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "detector_training.train", id=pa.string(), objects=OBJECTS, image=pa.binary())
        return LOSSES

    def preflight(self) -> list[str]:
        from vlpipe.models.detection.faster_rcnn import config_of
        from vlpipe.stages.detector_training.fit import LOSSES as NAMES

        found = self.problems()
        if self.init is not None and (self.model is not None or self.init_resnet is not None):
            found.append(
                "model and init_resnet are for a new detector, but `init` is set; remove them, or `init`"
            )
        found += [
            f"loss_weights: no loss is named {k!r}; the losses are {', '.join(NAMES)}"
            for k in self.loss_weights
            if k not in NAMES
        ]
        try:
            config_of(self.model or {})
        except (ValueError, TypeError) as error:
            found.append(str(error))
        return found

    def tell(self, row: Mapping[str, Any]) -> list[str]:
        """Returns one line, for `vlpipe why`: with which objects a row is in the training set."""
        objects = row["objects"] or []
        if not objects:
            return ["in the training set as background: it has no objects"]
        return [
            f"in the training set with {len(objects)} objects: {', '.join(one['label'] for one in objects)}"
        ]

    def run(self, job: Job) -> None:
        from vlpipe.stages.detector_training.fit import fit

        work = Path(job.work)
        with following(work / "progress.log", job.say):
            config = {"recipe": self, "inputs": job.inputs, "work": job.work}
            job.launch(fit, config, num_workers=self.num_workers, gpu=self.gpu)
        rows = json.loads((work / "result" / "losses.json").read_text())
        job.emit(pa.table([list(column) for column in zip(*rows, strict=True)], schema=LOSSES))
        left = shutil.ignore_patterns("losses.json")
        shutil.copytree(work / "result", job.artifacts, dirs_exist_ok=True, ignore=left)
