"""SQuAD's files: one row per question, with its context and the places of its answers.

Rajpurkar et al. 2016 and 2018, https://arxiv.org/abs/1606.05250 and https://arxiv.org/abs/1806.03822.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar

import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import ListFile
from vlpipe.pipeline.shard import Out, Reject
from vlpipe.pipeline.stage import SourceStage, Work
from vlpipe.stages.common.batches import without
from vlpipe.stages.common.row import LISTED, ListIds
from vlpipe.stages.lists.folder import wanted
from vlpipe.stages.lists.json_values import load_json, whole_number
from vlpipe.stages.lists.readers import BATCH_ROWS
from vlpipe.stages.lists.text_limit import TextLimit, text_lists
from vlpipe.stages.loading.makers.tasks.question import ANSWER_SPANS, characters

QUESTIONS = pa.schema([*LISTED, ("context", pa.string()), ("answers", ANSWER_SPANS)])


@dataclass(frozen=True, kw_only=True)
class SquadQuestions(SourceStage):
    """Questions as `texts` (source human), `context`, and `answers` (ANSWER_SPANS), none if there is no answer (SQuAD 2.0).

    file: JSON of SQuAD 1.1 or 2.0. `url` is the question's id. Reject code (fault): answer_elsewhere, an answer whose text
    is not at its place in the context. Raises VlpipeError with the place in the file for anything else that is wrong.
    """

    NAME: ClassVar[str] = "text_tasks.squad:SquadQuestions"

    file: ListFile
    source: str = "squad"
    text_limit: TextLimit = field(default_factory=TextLimit)

    def row_schema(self) -> pa.Schema:
        return QUESTIONS

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return QUESTIONS

    def rows(self) -> Iterator[pa.Table]:
        ids, found = ListIds(self.source), self._questions()
        while batch := list(islice(found, BATCH_ROWS)):
            urls, questions = [one[0] for one in batch], [one[1] for one in batch]
            columns = {
                "id": ids.of(urls, questions),
                "url": urls,
                "texts": text_lists([[one] for one in questions], "human", self.text_limit),
                "context": [one[2] for one in batch],
                "answers": pa.array([one[3] for one in batch], ANSWER_SPANS),
            }
            yield pa.table(columns, schema=QUESTIONS)

    def _questions(self) -> Iterator[tuple[str, str, str, list[dict[str, Any]]]]:
        """Yields (id, question, context, answers)."""
        path = self.file.path
        for n, article in enumerate(wanted(load_json(path), "data", list, path)):
            for m, paragraph in enumerate(wanted(article, "paragraphs", list, f"{path}: data[{n}]")):
                where = f"{path}: data[{n}].paragraphs[{m}]"
                context = wanted(paragraph, "context", str, where)
                for k, one in enumerate(wanted(paragraph, "qas", list, where)):
                    at = f"{where}.qas[{k}]"
                    question = wanted(one, "question", str, at).strip()
                    if not question:
                        raise VlpipeError(f"{at}: the question is empty")
                    yield wanted(one, "id", str, at), question, context, _answers(one, at)

    @contextmanager
    def open(self) -> Iterator[Work]:
        def work(rows: pa.Table) -> Out:
            rejects = [
                Reject(one["id"], "fault", "answer_elsewhere", wrong)
                for one in rows.select(["id", "context", "answers"]).to_pylist()
                if (wrong := _elsewhere(one["context"], one["answers"])) is not None
            ]
            return Out(without(rows, rejects), rejects)

        yield work


def _answers(question: Any, where: str) -> list[dict[str, Any]]:
    if question.get("is_impossible") is True:
        return []
    found = []
    for k, one in enumerate(wanted(question, "answers", list, where)):
        at = f"{where}.answers[{k}]"
        start = whole_number(one, "answer_start", at)
        if not abs(start) < 1 << 31:
            raise VlpipeError(f"{at}: answer_start is {start}, beyond any text")
        found.append({"text": wanted(one, "text", str, at), "start": start})
    return found


def _elsewhere(context: str, answers: list[dict[str, Any]]) -> str | None:
    """Returns the first answer that is not at its place; None if all are."""
    for one in answers:
        first, end = characters(one)
        if first < 0 or not one["text"] or context[first:end] != one["text"]:
            return f"{one['text']!r} is not at character {first}"
    return None
