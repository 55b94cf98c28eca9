"""Conversations about an image as token ids, of which the answers are learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.loading.makers.base import EXTRA, IGNORE, ROW, TARGET, Item, note
from vlpipe.stages.loading.makers.text import CHARACTERS, TokenIds
from vlpipe.stages.loading.rows import Row

CONVERSATIONS = pa.list_(pa.struct([("question", pa.string()), ("answer", pa.string())]))
IMAGE, QUESTION = "<image>", "{question}"
Turns = Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Conversation(TokenIds):
    """Token ids (B, L): the start token, then for each turn of the column `conversations` (CONVERSATIONS) the question in
    its template, the answer and the end token. A longer conversation is cut.

    target["ids"] (B, L): the ids of answers and their end tokens, which are learned. extra["image_at"] (B,): the position
    before which the image stands; extra["turn"] (B, L): the number of the answer that a token is of, from 1.
    first, later: templates of the first question and of those after it, with {question}, and the first with <image>;
    LLaVA-1.5's first one is "USER: <image>\\n{question} ASSISTANT:". between: what is before an answer.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("conversations",)
    NEEDS_TEXT: ClassVar[bool] = False
    MIN_LENGTH: ClassVar[int] = 4

    first: str = "<image>USER: {question} ASSISTANT:"
    later: str = "USER: {question} ASSISTANT:"
    between: str = " "

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, template, parts in (
            ("first", self.first, (IMAGE, QUESTION)),
            ("later", self.later, (QUESTION,)),
        ):
            if any(template.count(part) != 1 for part in parts):
                raise ValueError(f"{name} must have {' and '.join(parts)} once, got {template!r}")

    def num_positions(self, row: Row, text: str) -> float:
        said = sum(len(q) + len(a) + len(self.later) for q, a in self.turns(row, text, None))
        return min(self.length, said / CHARACTERS)

    def turns(self, row: Row, text: str, rng: np.random.Generator | None) -> Turns:
        """Returns (question, answer) of each turn."""
        found: list[dict[str, Any]] = row.columns["conversations"].as_py() or []
        if not found or any(turn["question"] is None or turn["answer"] is None for turn in found):
            raise VlpipeError(
                f"conversation: row {row.id} has a question or an answer that is null, or no conversation; add a step "
                "before training that rejects such rows"
            )
        return [(turn["question"], turn["answer"]) for turn in found]

    def __call__(self, row: Row, text: str, rng: np.random.Generator) -> Item:
        before, after = self.first.split(IMAGE)
        ids = [self.tokenizer.start, *(self.tokenizer.ids(before) if before else [])]
        image_at, turn_of = len(ids), [0] * len(ids)
        for number, (question, answer) in enumerate(self.turns(row, text, rng), 1):
            template = after if number == 1 else self.later
            asked = self.tokenizer.ids(template.replace(QUESTION, question))
            said = [*self.tokenizer.ids(self.between + answer), self.tokenizer.end]
            ids += [*asked, *said]
            turn_of += [0] * len(asked) + [number] * len(said)
        data, turn = np.array(ids[: self.length]), np.array(turn_of[: self.length])
        return {
            "data": data,
            f"{TARGET}ids": np.where(turn > 0, data, IGNORE),
            f"{EXTRA}image_at": np.int64(min(image_at, len(data))),
            f"{EXTRA}turn": turn,
            ROW: note(row.image_id),
        }


@dataclass(frozen=True, kw_only=True)
class Instruction(Conversation):
    """As `Conversation`, of one turn: an instruction, which is drawn, and the sample's text as its answer."""

    COLUMNS: ClassVar[tuple[str, ...]] = ()
    NEEDS_TEXT: ClassVar[bool] = True

    instructions: tuple[str, ...] = ("Describe the image.",)

    def turns(self, row: Row, text: str, rng: np.random.Generator | None) -> Turns:
        at = 0 if rng is None else int(rng.integers(len(self.instructions)))
        return [(self.instructions[at], text)]
