"""A question and its answer as one text, of which the answer is learned: answers that a decoder writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.loading.makers.answer import as_dicts
from vlpipe.stages.loading.makers.base import EXTRA, ROW, Item, note
from vlpipe.stages.loading.makers.text import Text
from vlpipe.stages.loading.rows import Row

# question: one of the row's texts. score: of the answer, from 0 to 1, such as VQA's accuracy.
SAID = pa.list_(pa.struct([("question", pa.string()), ("answer", pa.string()), ("score", pa.float32())]))


@dataclass(frozen=True, kw_only=True)
class AskedAnswer(Text):
    """As `Text`, of a question and its answer; extra["prompt"] (B,) is the number of positions up to the answer.

    The text of a sample is a question of the column `said` (SAID). Of several answers one is drawn with a probability
    proportional to its score (ALBEF weighs their losses so, https://arxiv.org/abs/2107.07651). `prompt` stands before the
    question. A question that leaves the answer no room loses its last tokens. Raises VlpipeError for a text without answers.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("said",)

    def __call__(self, row: Row | None, text: str, rng: np.random.Generator) -> Item:
        assert row is not None
        found = [one for one in as_dicts(row.columns["said"]) if one["question"] == text]
        scores = np.array([1.0 if one["score"] is None else one["score"] for one in found])
        if not scores.sum() > 0:
            raise VlpipeError(
                f"row {row.id}: the column `said` has no answer with a score above 0 to {text!r}"
            )
        answer = found[int(rng.choice(len(found), p=scores / scores.sum()))]["answer"]
        return {**self.asked(text, answer), ROW: note(row.image_id)}

    def asked(self, question: str, answer: str) -> Item:
        """Returns the item of a question and an answer."""
        told = [*self.tokenizer.ids(answer), self.tokenizer.end][: self.length - 2]
        before = self.before(question, self.length - len(told))
        ids = np.asarray([*before, *told], np.int64)
        return {"data": ids, f"{EXTRA}prompt": np.int64(len(before))}

    def before(self, question: str, room: int) -> Sequence[int]:
        """Returns the start token and those of prompt and question, at most `room`."""
        return [self.tokenizer.start, *self.tokenizer.ids(self.prompt + question)][: max(1, room)]
