"""Generates labelled images in one folder per class, as ImageNet's are: scenes of the demo by one of their attributes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.stage import GatherStage, Job
from vlpipe.stages.demo.scenes import draw_scene, encode, render


@dataclass(frozen=True, kw_only=True)
class DemoClassFolders(GatherStage):
    """Artifacts: train/CLASS/NUMBER.jpg and test/CLASS/NUMBER.jpg, for `classification.class_folders`.

    attribute: what of a scene with one object is its class. Scenes are drawn as in `demo.world`, from other numbers.
    """

    NAME: ClassVar[str] = "demo.tasks.class_folders:DemoClassFolders"
    ROWS_ARE: ClassVar[str] = "none"

    seed: int = 0
    attribute: Literal["shape", "colour", "size", "ground"] = "shape"
    num_train: Annotated[int, Field(ge=1)] = 500
    num_test: Annotated[int, Field(ge=1)] = 500

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return pa.schema([])

    def run(self, job: Job) -> None:
        for stream, (split, num) in enumerate({"train": self.num_train, "test": self.num_test}.items()):
            for index in range(num):
                rng = np.random.default_rng([self.seed, 7, stream, index])
                scene = draw_scene(rng, 0.0)
                name = (
                    scene.ground if self.attribute == "ground" else getattr(scene.things[0], self.attribute)
                )
                folder = Path(job.artifacts, split, name)
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{index:06d}.jpg").write_bytes(encode(render(scene, rng), "JPEG"))
