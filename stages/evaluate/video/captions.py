"""Captions that a model writes of clips, scored against human ones (YouCook2, MSR-VTT): CIDEr and BLEU-4."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import GatherStage, Job, Stage
from vlpipe.pipeline.storage.store import canonical_json
from vlpipe.stages.common.row import RESULTS, TEXTS
from vlpipe.stages.evaluate.caption_scores import TOKENIZER, caption_scores, length_problems, score_problems
from vlpipe.stages.evaluate.items import ITEMS_REFERENCES, items, write_items
from vlpipe.stages.evaluate.video.clip_rows import clip_rows
from vlpipe.stages.loading.rows import Row

WRITTEN = "caption"  # the stream that the model writes, which is not made for evaluation


@dataclass(frozen=True, kw_only=True)
class VideoCaptions(GatherStage):
    """Emits RESULTS `cider` (0 to 10) and `bleu@4` (0 to 1) of clips; `shuffled/cider`, `shuffled/bleu@4`: of captions of
    the clip halfway round the dataset; `different`, the share of captions that no earlier clip has. Artifacts:
    captions.json, each caption with its references; items.parquet, the CIDEr of each clip.

    model: with the capability DescribesClips, such as UniVL with `captions: true`. All texts of a row are references.
    streams: parameters of its makers, as in a recipe. num_beams: 1 is greedy search; UniVL uses 5. min_length, max_length:
    new tokens, without the end token.
    """

    NAME: ClassVar[str] = "evaluate.video.captions:VideoCaptions"
    ARTIFACT_REFERENCES: ClassVar[Mapping[str, tuple[str, ...]]] = ITEMS_REFERENCES
    ROWS_ARE: ClassVar[str] = "figures"
    TORCH: ClassVar[bool] = True

    model: Weights
    streams: dict[str, dict[str, Any]] = field(default_factory=dict)
    num_beams: Annotated[int, Field(ge=1)] = 5
    min_length: Annotated[int, Field(ge=0)] = 1
    max_length: Annotated[int, Field(ge=1)] = 20
    batch_size: Annotated[int, Field(ge=1)] = 64

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "evaluate.video.captions", id=pa.string(), parent=pa.string(), texts=TEXTS)
        return RESULTS

    def preflight(self) -> list[str]:
        return length_problems(self.min_length, self.max_length) + score_problems()

    def preflight_after(self, stages: Mapping[str, Stage]) -> list[str]:
        from vlpipe.models.interface.video_capabilities import DescribesClips
        from vlpipe.stages.common.model import capability_problems

        return capability_problems(self.model, stages, [DescribesClips])

    def run(self, job: Job) -> None:
        from vlpipe.models.generation.generate import check
        from vlpipe.models.interface.video_capabilities import DescribesClips
        from vlpipe.stages.common.model import load
        from vlpipe.stages.train.build import build_makers
        from vlpipe.stages.train.recipe import Recipe

        loaded = load(self.model, needs=[DescribesClips])
        check(loaded.model, self.min_length, self.max_length, [])
        recipe = Recipe(objectives=[], streams=self.streams)
        made = build_makers(recipe, loaded.model, loaded.tokenizer)
        makers = {name: maker for name, maker in made.items() if name != WRITTEN}
        columns = list(dict.fromkeys(c for maker in makers.values() for c in maker.COLUMNS))
        ids: list[str] = []
        captions: list[str] = []
        references: list[list[str]] = []
        for rows in clip_rows(job, columns, self.batch_size):
            captions += self._write(loaded, makers, rows)
            references += [list(row.texts) for row in rows]
            ids += [row.id for row in rows]
        if not ids:
            raise VlpipeError("evaluate.video.captions: there is no row with a usable text")
        half = len(captions) // 2
        scores, each = caption_scores(captions, references)
        others, _ = caption_scores(captions[half:] + captions[:half], references)
        figures = {**scores, **{f"shuffled/{name}": value for name, value in others.items()}}
        figures["different"] = len(set(captions)) / len(captions)
        written = [
            {"id": id_, "caption": one, "references": several}
            for id_, one, several in zip(ids, captions, references, strict=True)
        ]
        content = {"tokenizer": TOKENIZER, "captions": written}
        (Path(job.artifacts) / "captions.json").write_bytes(canonical_json(content))
        write_items(Path(job.artifacts), [items("cider", list(zip(ids, ids, strict=True)), each)])
        job.say(f"{len(ids)} captions scored, tokenizer {TOKENIZER}")
        results = [{"name": n, "value": v, "num_rows": len(ids)} for n, v in figures.items()]
        job.emit(pa.Table.from_pylist(results, RESULTS))

    def _write(self, loaded: Any, makers: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
        import torch

        from vlpipe.models.generation.beam import search

        streams = {
            name: maker.on_device(maker.collate([maker(row, "", np.random.default_rng(0)) for row in rows]))
            for name, maker in makers.items()
        }
        with torch.inference_mode():
            context = loaded.outputs(**streams).clip_context
            found = search(
                loaded.model,
                context,
                num_beams=self.num_beams,
                min_length=self.min_length,
                max_length=self.max_length,
            )
        return [loaded.tokenizer.decode(ids) for ids in found]
