"""One or two sentences of a row with a class or a score: GLUE's tasks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.loading.makers.base import EXTRA, ROW, Item, Maker, note
from vlpipe.stages.loading.makers.text import TokenIds
from vlpipe.stages.loading.rows import Row


@dataclass(frozen=True, kw_only=True)
class Sentences(TokenIds):
    """Token ids (B, L) of the texts of a row: `[CLS] text [SEP]`, or `[CLS] first [SEP] second [SEP]`.

    extra["segment"] (B, L): 0, then 1 after the first [SEP]. The step that trains says `texts: images`, so that a row is one
    sample. Raises VlpipeError for a row of more than two texts.
    """

    MIN_LENGTH: ClassVar[int] = 5

    def __call__(self, row: Row, text: str, rng: np.random.Generator) -> Item:
        if len(row.texts) > 2:
            raise VlpipeError(f"sentences: row {row.id} has {len(row.texts)} texts, wanted one or two")
        if len(row.texts) == 2:
            ids, _, segment = self.tokenizer.encode_pair(*row.texts, self.length)
        else:
            ids, _ = self.tokenizer.encode_one(row.texts[0], self.length, keep_end=True)
            segment = [0] * len(ids)
        return {
            "data": np.asarray(ids, np.int64),
            f"{EXTRA}segment": np.asarray(segment, np.int64),
            ROW: note(row.image_id),
        }


@dataclass(frozen=True, kw_only=True)
class Score(Maker):
    """Scores (B,) float32 of the column `score`; NaN where it is null. Raises VlpipeError for one that is not finite."""

    COLUMNS: ClassVar[tuple[str, ...]] = ("score",)

    def __call__(self, row: Row, text: str, rng: np.random.Generator) -> Item:
        score = row.columns["score"]
        if score is not None and not math.isfinite(score):
            raise VlpipeError(f"row {row.id}: score is {score}, wanted a finite number")
        return {"data": np.float32(math.nan if score is None else score)}
