"""Generates a task of writing: what a detailed caption of a demo scene is about, in the most common words."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.stage import GatherStage, Job
from vlpipe.stages.demo.captions import COLOUR_WORDS, SHAPE_WORDS, human_caption
from vlpipe.stages.demo.scenes import draw_scene

SPLITS = ("train", "dev")


@dataclass(frozen=True, kw_only=True)
class ShortTexts(GatherStage):
    """Artifacts: train.jsonl and dev.jsonl, {source, target}: a caption, and colour and shape of its object.

    The target has the most common word of each, "purple ring" for a violet hoop. num_train, num_dev: lines.
    """

    NAME: ClassVar[str] = "demo.tasks.short_texts:ShortTexts"
    ROWS_ARE: ClassVar[str] = "none"

    seed: int = 0
    num_train: Annotated[int, Field(ge=1)] = 300
    num_dev: Annotated[int, Field(ge=1)] = 500

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return pa.schema([])

    def run(self, job: Job) -> None:
        for number, (split, num) in enumerate(zip(SPLITS, (self.num_train, self.num_dev), strict=True)):
            lines = [json.dumps(self._pair(number, k)) for k in range(num)]
            Path(job.artifacts, f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _pair(self, split: int, index: int) -> dict[str, str]:
        rng = np.random.default_rng((self.seed, 26, split, index))
        scene = draw_scene(rng, 0.0)
        thing = scene.things[0]
        target = f"{COLOUR_WORDS[thing.colour][0]} {SHAPE_WORDS[thing.shape][0]}"
        return {"source": human_caption(scene, rng), "target": target}
