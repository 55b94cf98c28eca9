"""A question and a part of its context, with the place of the answer: SQuAD's questions.

Devlin et al. 2019, https://arxiv.org/abs/1810.04805, section 4.2; windows as in `run_squad.py` of their code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.loading.makers.answer import as_dicts
from vlpipe.stages.loading.makers.base import EXTRA, ROW, TARGET, Item, note
from vlpipe.stages.loading.makers.text import TokenIds
from vlpipe.stages.loading.rows import Row

ANSWER_SPANS = pa.list_(pa.struct([("text", pa.string()), ("start", pa.int32())]))  # start: a character
NONE = (0, 0)  # the span of no answer: [CLS]
Span = tuple[int, int]  # first and end: of characters, or of tokens


@dataclass(frozen=True)
class Window:
    """A part of a context. ids, segment: of `[CLS] question [SEP] part [SEP]`; offset: of the part's first token in them.

    chars: the characters of each token of the part in the context. first: the part's first token in the context.
    """

    ids: list[int]
    segment: list[int]
    offset: int
    first: int
    chars: list[Span]

    def place(self, answer: Span) -> Span:
        """Returns the first and last position of an answer's tokens, NONE if not all are here. answer: its characters."""
        inside = [k for k, (first, end) in enumerate(self.chars) if first < answer[1] and end > answer[0]]
        if not inside or self.chars[inside[0]][0] > answer[0] or self.chars[inside[-1]][1] < answer[1]:
            return NONE
        return self.offset + inside[0], self.offset + inside[-1]


def starts(num_tokens: int, room: int, stride: int) -> list[int]:
    """Returns the first tokens of windows of `room` tokens that cover all; neighbours are `stride` apart."""
    found = [0]
    while found[-1] + room < num_tokens:
        found.append(found[-1] + min(stride, room))
    return found


def windows(
    tokenizer: Any, question: str, context: str, *, length: int, max_question: int, stride: int
) -> list[Window]:
    """Returns the windows of a context in order, each at most `length` tokens with the question, cut to `max_question`."""
    asked = tokenizer.ids(question)[:max_question]
    ids, chars = tokenizer.spans(context)
    room = length - len(asked) - 3
    if room < 1:
        raise VlpipeError(
            f"question: {len(asked)} tokens of the question leave no room for a context in {length} tokens; raise "
            "max_length or lower max_question"
        )
    before = [tokenizer.start, *asked, tokenizer.end]
    return [
        Window(
            [*before, *(part := ids[first : first + room]), tokenizer.end],
            [0] * len(before) + [1] * (len(part) + 1),
            len(before),
            first,
            chars[first : first + room],
        )
        for first in starts(len(ids), room, stride)
    ]


@dataclass(frozen=True, kw_only=True)
class QuestionInContext(TokenIds):
    """Token ids (B, L) of `[CLS] question [SEP] context [SEP]`, extra["segment"], and target["span"] (B, 2).

    The text of a row is the question; its columns are `context`, and `answers` of type ANSWER_SPANS, the first of which is
    the target: positions of its first and last token, or 0 and 0 if there is none, or not in the window. A context that is
    too long is cut into windows `stride` tokens apart, of which each sample draws one; the published code takes all, so a
    long context weighs more there.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("context", "answers")
    MIN_LENGTH: ClassVar[int] = 5

    stride: Annotated[int, Field(ge=1)] = 128
    max_question: Annotated[int, Field(ge=1)] = 64

    def windows(self, question: str, context: str) -> Sequence[Window]:
        sizes = {"length": self.length, "max_question": self.max_question, "stride": self.stride}
        return windows(self.tokenizer, question, context, **sizes)

    def __call__(self, row: Row, text: str, rng: np.random.Generator) -> Item:
        found = self.windows(text, row.columns["context"])
        one = found[int(rng.integers(len(found)))]
        answers = as_dicts(row.columns["answers"])
        span = one.place(characters(answers[0])) if answers else NONE
        return {
            "data": np.asarray(one.ids, np.int64),
            f"{EXTRA}segment": np.asarray(one.segment, np.int64),
            f"{TARGET}span": np.asarray(span, np.int64),
            ROW: note(row.image_id),
        }


def characters(answer: Mapping[str, Any]) -> Span:
    """Returns the characters [first, end) of an answer."""
    return answer["start"], answer["start"] + len(answer["text"])
