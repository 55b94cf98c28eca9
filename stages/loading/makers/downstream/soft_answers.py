"""The scores of all answers to the question that a sample's text is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vlpipe.stages.loading.makers.answer import Answer
from vlpipe.stages.loading.makers.base import Item
from vlpipe.stages.loading.rows import Row


@dataclass(frozen=True, kw_only=True)
class SoftAnswers(Answer):
    """Scores (B, num_answers) float32 from 0 to 1 of the answers to a question, 0 for all that it does not have.

    The column `answers` is as in `Answer`; a null score is 1. A question none of whose answers has a label has zeros.
    """

    def __call__(self, row: Row, text: str, rng: np.random.Generator) -> Item:
        labels, scores = self.labels_and_scores(row, text)
        found = np.zeros(self.num_answers, np.float32)
        found[labels] = scores
        return {"data": found}
