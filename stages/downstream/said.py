"""Questions about images with answers as texts: readers of GQA, Visual Genome and VQA v2, and the labels of answers."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File, ListFile
from vlpipe.pipeline.shard import need, with_field
from vlpipe.pipeline.stage import GatherStage, Job, MapStage, Work
from vlpipe.stages.lists.folder import Captioned, FolderSource, captioned_rows, wanted
from vlpipe.stages.lists.json_values import load_json, whole_number
from vlpipe.stages.lists.vqa import (
    ANSWERS,
    by_question,
    image_file,
    left_out,
    normalised,
    question_id,
    read_labels,
)
from vlpipe.stages.loading.makers.downstream.asked_answer import SAID


class Asked(NamedTuple):
    """A question about an image, and the score of each answer by its text."""

    image: str
    question: str
    answers: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class SaidAnswers(FolderSource):
    """Base of readers: one row per image with its questions as `texts` (source human) and their answers in `said` (SAID).

    Answers are as VQA's evaluation compares them (`lists.vqa.normalised`). A question that is asked of an image again keeps
    the answers of the first time.
    """

    NAME: ClassVar[str] = "downstream.said:SaidAnswers"
    VERSION: ClassVar[int] = FolderSource.VERSION + 1  # contractions have their apostrophes
    MORE: ClassVar[tuple[pa.Field, ...]] = (pa.field("said", SAID),)

    questions: ListFile
    source: str

    def asked(self) -> Iterator[Asked]:
        """Yields the questions of the file. Raises VlpipeError with the place of what is wrong."""
        raise NotImplementedError

    def rows(self) -> Iterator[pa.Table]:
        images: dict[str, dict[str, list[dict[str, Any]]]] = {}
        for image, question, answers in self.asked():
            shown = self.text_limit.of(question)
            said = [{"question": shown, "answer": a, "score": s} for a, s in answers.items()]
            images.setdefault(image, {}).setdefault(question, said)
        listed = (Captioned(name, list(questions)) for name, questions in images.items())
        left = iter(images.values())
        for table in captioned_rows(listed, source=self.source, text_source="human", limit=self.text_limit):
            more = [next(left) for _ in range(table.num_rows)]
            column = pa.array([[one for said in row.values() for one in said] for row in more], SAID)
            yield table.append_column(self.MORE[0], column)


@dataclass(frozen=True, kw_only=True)
class GqaQuestions(SaidAnswers):
    """GQA's JSON: {question id: {imageId, question, answer}}. Hudson and Manning 2019, https://arxiv.org/abs/1902.09506."""

    NAME: ClassVar[str] = "downstream.said:GqaQuestions"

    file_name: str = "{id}.jpg"
    source: str = "gqa"

    def asked(self) -> Iterator[Asked]:
        path = self.questions.path
        content = load_json(path)
        if not isinstance(content, dict):
            raise VlpipeError(f"{path}: wanted a JSON object of questions by their ids, as GQA has")
        for number, one in content.items():
            where = f"{path}: question {number}"
            image = self.file_name.format(id=wanted(one, "imageId", str, where))
            yield Asked(image, *_question(one, where))


@dataclass(frozen=True, kw_only=True)
class VgQuestions(SaidAnswers):
    """Visual Genome's JSON: [{qas: [{image_id, question, answer}]}]. Krishna et al. 2017, https://arxiv.org/abs/1602.07332."""

    NAME: ClassVar[str] = "downstream.said:VgQuestions"

    file_name: str = "{id}.jpg"
    source: str = "vg_qa"

    def asked(self) -> Iterator[Asked]:
        path = self.questions.path
        content = load_json(path)
        if not isinstance(content, list):
            raise VlpipeError(f"{path}: wanted a JSON array of images with `qas`, as Visual Genome has")
        for n, image in enumerate(content):
            for k, one in enumerate(wanted(image, "qas", list, f"{path}: [{n}]")):
                where = f"{path}: [{n}].qas[{k}]"
                question = _question(one, where)
                yield Asked(self.file_name.format(id=whole_number(one, "image_id", where)), *question)


@dataclass(frozen=True, kw_only=True)
class VqaAnswers(SaidAnswers):
    """VQA v2's JSON, as `lists.vqa:VqaQuestions`, with all answers as texts; their scores are VQA's accuracy."""

    NAME: ClassVar[str] = "downstream.said:VqaAnswers"

    annotations: ListFile
    file_name: str = "COCO_{split}_{id:012d}.jpg"
    source: str = "vqa"

    def _told(self) -> Iterator[tuple[str, str, dict[str, float]]]:
        """Yields (place in the file, question id, answer -> score)."""
        path = self.annotations.path
        for n, one in enumerate(wanted(load_json(path), "annotations", list, path)):
            where = f"{path}: annotations[{n}]"
            given = wanted(one, "answers", list, where)
            counts = Counter(normalised(wanted(a, "answer", str, where)) for a in given)
            yield where, question_id(one, where), {a: left_out(num, len(given)) for a, num in counts.items()}

    def asked(self) -> Iterator[Asked]:
        told = by_question(self._told())
        path = self.questions.path
        content = load_json(path)
        split = content.get("data_subtype", "") if isinstance(content, dict) else ""
        for n, one in enumerate(wanted(content, "questions", list, path)):
            where = f"{path}: questions[{n}]"
            question = wanted(one, "question", str, where).strip()
            number = question_id(one, where)
            if number not in told or not question:
                raise VlpipeError(
                    f"{where}: wanted a question with an annotation, got {question!r}, {number}"
                )
            yield Asked(image_file(self.file_name, split, one, where), question, told[number])


def _question(one: Any, where: str) -> tuple[str, dict[str, float]]:
    """Returns (question, its one answer with score 1)."""
    question = wanted(one, "question", str, where).strip()
    answer = normalised(wanted(one, "answer", str, where))
    if not question or not answer:
        raise VlpipeError(f"{where}: the question or its answer is empty")
    return question, {answer: 1.0}


@dataclass(frozen=True, kw_only=True)
class AnswerSet(GatherStage):
    """Artifact answers.json: the common answers of the column `said`, the commonest first; their places are their labels.

    An answer counts as often as it is the best one of a question. min_count: how often at least. max_answers: at most.
    """

    NAME: ClassVar[str] = "downstream.said:AnswerSet"
    ROWS_ARE: ClassVar[str] = "none"

    min_count: Annotated[int, Field(ge=1)] = 1
    max_answers: Annotated[int, Field(ge=1)] | None = None

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "downstream.said", said=SAID)
        return pa.schema([])

    def run(self, job: Job) -> None:
        counts: Counter[str] = Counter()
        for data in job.inputs:
            for table in data.batches(["said"]):
                for said in table["said"].to_pylist():
                    counts.update(best for best in _best(said or ()))
        common = sorted((a for a, n in counts.items() if n >= self.min_count), key=lambda a: (-counts[a], a))
        if not common:
            raise VlpipeError(f"no answer occurs {self.min_count} times, as min_count wants")
        common = common[: self.max_answers]
        (Path(job.artifacts) / "answers.json").write_text(json.dumps(common, indent=0))
        job.say(f"{len(common):,} of {len(counts):,} answers")


def _best(said: Any) -> Iterator[str]:
    """Yields the answer with the highest score of each question; of equal ones the first."""
    best: dict[str, tuple[float, str]] = defaultdict(lambda: (-1.0, ""))
    for one in said:
        if one["score"] > best[one["question"]][0]:
            best[one["question"]] = one["score"], one["answer"]
    yield from (answer for _, answer in best.values())


@dataclass(frozen=True, kw_only=True)
class LabelAnswers(MapStage):
    """Adds the column `answers` (`lists.vqa.ANSWERS`) of the answers in `said` that have a label.

    labels: JSON, a list of answers or {answer: label}, such as `AnswerSet` makes.
    """

    NAME: ClassVar[str] = "downstream.said:LabelAnswers"

    labels: File

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "downstream.said", id=pa.string(), said=SAID)
        return with_field(inp, pa.field("answers", ANSWERS))

    @contextmanager
    def open(self) -> Iterator[Work]:
        labels = read_labels(self.labels.path)

        def work(table: pa.Table) -> pa.Table:
            found = [
                [
                    {"question": one["question"], "label": labels[one["answer"]], "score": one["score"]}
                    for one in said or ()
                    if one["answer"] in labels
                ]
                for said in table["said"].to_pylist()
            ]
            return table.append_column("answers", pa.array(found, ANSWERS))

        yield work
