"""The perfect captioner: a right caption of each image of the demo world, written from its scene."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import MapStage, Work
from vlpipe.stages.common.batches import seed_of, with_texts
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.demo.captions import human_caption
from vlpipe.stages.demo.scenes import Scene
from vlpipe.stages.ground_truth.filter import read_truth, scene_of, truth_of


@dataclass(frozen=True, kw_only=True)
class TrueCaption(MapStage):
    """Replaces each synthetic text by a right caption of the row's scene; appends one to rows without a synthetic text.

    The captions have source `synth`, no model and no decision, and the wording of the world's human captions. Caption j of
    row r depends only on (seed, id of r, j) and the scene. truth: the demo world's truth.parquet. Rows of another world are
    an error.
    """

    NAME: ClassVar[str] = "ground_truth.caption:TrueCaption"

    truth: File
    seed: int = 0

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "ground_truth.caption", id=pa.string(), url=pa.string(), texts=TEXTS)
        return inp

    @contextmanager
    def open(self) -> Iterator[Work]:
        known = read_truth(self.truth)

        def work(table: pa.Table) -> pa.Table:
            rows = table.select(["id", "url", "texts"]).to_pylist()
            scenes = [scene_of(truth_of(row["url"], known)) for row in rows]
            return with_texts(table, [self._texts(*each) for each in zip(rows, scenes, strict=True)])

        yield work

    def _texts(self, row: dict[str, Any], scene: Scene) -> list[dict[str, Any]]:
        texts = list(row["texts"] or ())
        places = [place for place, one in enumerate(texts) if one["source"] == "synth"]
        if not places:
            places = [len(texts)]
            texts.append({})
        for number, place in enumerate(places):
            rng = np.random.default_rng(seed_of("true caption", self.seed, row["id"], number))
            texts[place] = text(human_caption(scene, rng), "synth")
        return texts
