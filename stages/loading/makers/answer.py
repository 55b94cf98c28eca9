"""The answer to the question that a sample's text is, as a class: LXMERT's and others' visual question answering."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.loading.makers.base import IGNORE, Item, Maker
from vlpipe.stages.loading.rows import Row

ANSWERS = pa.list_(pa.struct([("question", pa.string()), ("label", pa.int32()), ("score", pa.float32())]))


@dataclass(frozen=True, kw_only=True)
class Answer(Maker):
    """Labels (B,) of answers; IGNORE for a text that is no question, and for a question without answers.

    The column `answers` has the type ANSWERS: labels of the row's questions, each question equal to one of the row's texts.
    Of several labels of a question one is drawn, with a probability proportional to its score (LXMERT). num_answers: labels
    are below it. Raises VlpipeError for a label that is not, and for a score below 0.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("answers",)
    NEEDS_TEXT: ClassVar[bool] = True

    num_answers: int

    def __post_init__(self) -> None:
        if self.num_answers < 1:
            raise ValueError(f"streams: num_answers must be at least 1, got {self.num_answers}")

    def labels_and_scores(self, row: Row, text: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Returns labels and scores (A,) of the answers to a question; A is 0 for a text that is no question."""
        found = [one for one in as_dicts(row.columns["answers"]) if one["question"] == text]
        if any(one["label"] is None for one in found):
            raise VlpipeError(f"row {row.id}: answers has a null label, wanted an id for each answer")
        labels = np.array([one["label"] for one in found], np.int64)
        scores = np.array([1.0 if one["score"] is None else one["score"] for one in found])
        if len(labels) and not 0 <= labels.min() <= labels.max() < self.num_answers:
            raise VlpipeError(
                f"row {row.id}: answers has labels from {labels.min()} to {labels.max()}, wanted labels below "
                f"num_answers {self.num_answers}"
            )
        if wrong := [score for score in scores.tolist() if not 0 <= score < math.inf]:
            raise VlpipeError(f"row {row.id}: answers has a score {wrong[0]}, wanted finite scores from 0")
        return labels, scores

    def __call__(self, row: Row, text: str, rng: np.random.Generator) -> Item:
        labels, scores = self.labels_and_scores(row, text)
        if not scores.sum():
            return {"data": np.int64(IGNORE)}
        return {"data": labels[rng.choice(len(labels), p=scores / scores.sum())]}


def as_dicts(value: Any) -> list[dict[str, Any]]:
    """Returns the structs of an Arrow list scalar; none for null."""
    return value.as_py() or []
