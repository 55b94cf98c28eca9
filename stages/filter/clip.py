"""CLIP similarity of each text and its image: the cosine that LAION, DataComp and others threshold.

A threshold is valid for one encoder only (LAION's 0.28 is for OpenAI's ViT-B/32), so the column records its encoder,
and `filter.rules` refuses a threshold for another. Radford et al., 2021, https://arxiv.org/abs/2103.00020.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import pyarrow as pa

from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import need
from vlpipe.pipeline.stage import MapStage, Stage, Work
from vlpipe.stages.common.batches import batch_size_problems
from vlpipe.stages.common.row import TEXTS
from vlpipe.stages.common.scores import device, load_model, name_of, pretrained, processed
from vlpipe.stages.dual_encoders.of_transformers import image_vectors, text_vectors
from vlpipe.stages.dual_encoders.score import add_scores, compute_made_up
from vlpipe.stages.dual_encoders.towers import Encoders
from vlpipe.stages.inference.ahead import Working
from vlpipe.stages.inference.stage import RunsModel
from vlpipe.stages.judging.column import with_score


@dataclass(frozen=True, kw_only=True)
class ClipScore(RunsModel, MapStage):
    """Adds `clip_score`: list<float32>, the cosine of the text's and the image's embeddings, -1 to 1, for each text.

    Texts that are already dropped get null and are not computed. Rows with an undecodable image are rejected
    (fault), and those with a score that is no finite number (not_finite).
    model: a transformers CLIPModel (folder or hub id), or a model of this package that embeds images and texts. encoder:
    the model's name in rules; default: the hub id, the folder's name or the step. column: another name than `clip_score`,
    so that scores of several encoders stand side by side. `filter.dual` takes other models than CLIP, too.
    """

    NAME: ClassVar[str] = "filter.clip:ClipScore"
    READS_HEAVY: ClassVar[tuple[str, ...]] = ("image",)
    LOADS_WEIGHTS: ClassVar[bool] = True
    TORCH: ClassVar[bool] = True
    NOT_IN_KEY: ClassVar[frozenset[str]] = RunsModel.NOT_IN_KEY | {"encoder"}
    ADDED: ClassVar[frozenset[str]] = RunsModel.ADDED | {"column"}

    model: Weights
    encoder: str = ""
    column: str = "clip_score"
    batch_size: int = 64

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "filter.clip", id=pa.string(), texts=TEXTS, image=pa.binary())
        return with_score(inp, self.column, name_of(self.model, self.encoder), "filter.clip")

    def preflight(self) -> list[str]:
        return batch_size_problems(self.batch_size) + self.worker_problems()

    def preflight_after(self, stages: Mapping[str, Stage]) -> list[str]:
        from vlpipe.models.interface.capabilities import EmbedsImages, EmbedsTexts
        from vlpipe.stages.common.model import capability_problems

        return capability_problems(self.model, stages, [EmbedsImages, EmbedsTexts])

    @contextmanager
    def open(self) -> Iterator[Work]:
        work = partial(add_scores, self._encoders(), self.column, self.batch_size)
        yield Working(work, self.decode_workers, device().type == "cuda")

    @contextmanager
    def trials(self) -> Iterator[Callable[[int], None]]:
        yield partial(compute_made_up, self._encoders())

    def _encoders(self) -> Encoders:
        from vlpipe.models.folder import is_ours
        from vlpipe.stages.dual_encoders import of_this_package

        if is_ours(self.model.path):
            return of_this_package.load(self.model, self.precision)
        return self._of_transformers()

    def _of_transformers(self) -> Encoders:
        from transformers import AutoTokenizer, CLIPModel

        clip = load_model(CLIPModel, self.model, self.precision)
        tokenizer = pretrained(AutoTokenizer, self.model.path)
        return Encoders(
            prepare=processed(self.model),
            images=partial(image_vectors, clip),
            texts=partial(text_vectors, clip, tokenizer),
            side=clip.config.vision_config.image_size,
        )
