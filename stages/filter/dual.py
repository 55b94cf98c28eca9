"""Similarity of each text and its image by any model with two encoders: CLIP, SigLIP, DFN and other networks of open_clip.

Radford et al., 2021, https://arxiv.org/abs/2103.00020; Zhai et al., 2023, https://arxiv.org/abs/2303.15343; Fang et al.,
2023 (DFN), https://arxiv.org/abs/2309.17425. A threshold is valid for one encoder only: the column records it, and rules
refuse a threshold for another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import pyarrow as pa
import pyarrow.compute as pc

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import Out, need
from vlpipe.pipeline.stage import MapStage, Stage, Work
from vlpipe.stages.common.batches import batch_size_problems
from vlpipe.stages.common.row import TEXTS
from vlpipe.stages.common.scores import device, name_of
from vlpipe.stages.common.texts import to_mask
from vlpipe.stages.dual_encoders.score import add_scores, compute_made_up
from vlpipe.stages.dual_encoders.towers import Encoders
from vlpipe.stages.inference.ahead import Ahead, Working
from vlpipe.stages.inference.stage import RunsModel
from vlpipe.stages.judging.column import with_score


@dataclass(frozen=True, kw_only=True)
class DualScore(RunsModel, MapStage):
    """Adds `column`: list<float32>, one score per text. Several such steps with different columns stand side by side.

    model: a folder or hub id of transformers (a model with `get_image_features` and `get_text_features`), an open_clip
    folder, or a model of this package that embeds images and texts. score: `cosine`, -1 to 1; `probability`, 0 to 1, of a
    model trained with a sigmoid loss (SigLIP). encoder: the model's name in rules; default: the hub id, the folder's name or
    the step. sources: whose texts are scored; empty: all. flagged_only: judges anew the rows whose content is not what their
    list says (`hash_matches` is false, of `fetching.images` with `on_hash_mismatch: flag`); texts of others get null, which
    a rule with `on_missing: keep` lets pass.
    Texts that are dropped get null and are not computed. Rows with an undecodable image are rejected
    (fault), and those with a score that is no finite number (not_finite).
    """

    NAME: ClassVar[str] = "filter.dual:DualScore"
    READS_HEAVY: ClassVar[tuple[str, ...]] = ("image",)
    LOADS_WEIGHTS: ClassVar[bool] = True
    TORCH: ClassVar[bool] = True
    NOT_IN_KEY: ClassVar[frozenset[str]] = RunsModel.NOT_IN_KEY | {"encoder"}
    ADDED: ClassVar[frozenset[str]] = RunsModel.ADDED | {"flagged_only"}

    model: Weights
    column: str = "dual_score"
    score: Literal["cosine", "probability"] = "cosine"
    encoder: str = ""
    sources: tuple[str, ...] = ()
    flagged_only: bool = False
    batch_size: int = 64

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "filter.dual", id=pa.string(), texts=TEXTS, image=pa.binary())
        if self.flagged_only:
            need(inp, "filter.dual", hash_matches=pa.bool_())
        return with_score(inp, self.column, name_of(self.model, self.encoder), "filter.dual")

    def preflight(self) -> list[str]:
        return batch_size_problems(self.batch_size) + self.worker_problems()

    def preflight_after(self, stages: Mapping[str, Stage]) -> list[str]:
        from vlpipe.models.interface.capabilities import EmbedsImages, EmbedsTexts
        from vlpipe.stages.common.model import capability_problems

        return capability_problems(self.model, stages, [EmbedsImages, EmbedsTexts])

    @contextmanager
    def open(self) -> Iterator[Work]:
        work = partial(self._score, self._encoders())
        yield Working(work, self.decode_workers, device().type == "cuda")

    def _score(self, model: Encoders, rows: pa.Table, ahead: Ahead) -> Out:
        where = to_mask(pc.invert(rows["hash_matches"])) if self.flagged_only else None
        probable = self.score == "probability"
        return add_scores(
            model,
            self.column,
            self.batch_size,
            rows,
            ahead,
            self.sources,
            as_probability=probable,
            where=where,
        )

    @contextmanager
    def trials(self) -> Iterator[Callable[[int], None]]:
        yield partial(compute_made_up, self._encoders())

    def _encoders(self) -> Encoders:
        from vlpipe.stages.dual_encoders.load import load

        model = load(self.model, self.precision)
        if self.score == "probability" and model.bias is None:
            raise VlpipeError(
                f"filter.dual: {self.model.path} was not trained with a sigmoid loss, so its scores are no probabilities; "
                "set `score: cosine`"
            )
        return model
