"""Questions about images with their answers, in the JSON of VQA v2: one row per image with all its questions.

https://visualqa.org/download.html: {questions: [{image_id, question, question_id}], data_subtype} and
{annotations: [{question_id, answers: [{answer}], multiple_choice_answer}]}.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import VlpipeError, shown
from vlpipe.pipeline.files import File, ListFile
from vlpipe.pipeline.stage import GatherStage, Job
from vlpipe.stages.lists.folder import Captioned, FolderSource, captioned_rows, wanted, with_column
from vlpipe.stages.lists.json_values import load_json, whole_number
from vlpipe.stages.lists.list import text_of

# `stages.loading.makers.answer.ANSWERS`
ANSWERS = pa.list_(pa.struct([("question", pa.string()), ("label", pa.int32()), ("score", pa.float32())]))
ANNOTATORS = 3  # as many that say the same make a score of 1
Answers = list[dict[str, Any]]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class VqaQuestions(FolderSource):
    """Images with questions as texts, and the column `answers`: the labels of each question's answers and their scores.

    questions, annotations: JSON of VQA v2. labels: JSON, a list of answers, whose places are their labels, or
    {answer: label}; `AnswerLabels` makes one. Answers without a label are left out. The score of an answer is
    min(1, n / 3) if n people gave it. file_name: of an image below `images`; `split` is the questions' `data_subtype`.

    leave_one_out: the score is the mean of min(1, n / 3) over all choices of the people but one, the accuracy of VQA's
    evaluation: 0.3, 0.6, 0.9 and 1 for 1, 2, 3 and more of ten.
    """

    questions: ListFile
    annotations: ListFile
    labels: ListFile
    file_name: str = "COCO_{split}_{id:012d}.jpg"
    source: str = "vqa"
    leave_one_out: bool = False

    NAME: ClassVar[str] = "lists.vqa:VqaQuestions"
    ADDED: ClassVar[frozenset[str]] = frozenset({"leave_one_out"})
    VERSION: ClassVar[int] = FolderSource.VERSION + 1  # contractions have their apostrophes
    MORE: ClassVar[tuple[pa.Field, ...]] = (pa.field("answers", ANSWERS),)

    def rows(self) -> Iterator[pa.Table]:
        labels = read_labels(self.labels.path)
        given = by_question(_scores(self.annotations.path, labels, self.leave_one_out))
        images: dict[str, list[str]] = {}
        answers: dict[str, Answers] = {}
        for where, name, number, question in self._questions():
            if number not in given:
                raise VlpipeError(f"{where}: {self.annotations.path} has no annotation of question {number}")
            images.setdefault(name, []).append(question)
            asked = self.text_limit.of(question)
            found = [{"question": asked, "label": k, "score": s} for k, s in given[number].items()]
            answers.setdefault(name, []).extend(found)
        listed = (Captioned(name, texts) for name, texts in images.items())
        tables = captioned_rows(listed, source=self.source, text_source="human", limit=self.text_limit)
        yield from with_column(tables, self.MORE[0], answers.values())

    def _questions(self) -> Iterator[tuple[str, str, str, str]]:
        """Yields (place in the file, image file, question id, question)."""
        path = self.questions.path
        content = load_json(path)
        split = content.get("data_subtype", "") if isinstance(content, dict) else ""
        for n, one in enumerate(wanted(content, "questions", list, path)):
            where = f"{path}: questions[{n}]"
            question = wanted(one, "question", str, where).strip()
            name = image_file(self.file_name, split, one, where)
            yield where, name, question_id(one, where), question


def image_file(file_name: str, split: Any, question: Any, where: str) -> str:
    """Returns the file of a question's image. Raises VlpipeError for an `image_id` that is no whole number."""
    number = whole_number(question, "image_id", where)
    try:
        return file_name.format(split=split, id=number)
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise VlpipeError(
            f"file_name: {file_name!r} cannot be filled with split and id ({type(error).__name__}: {error})"
        ) from error


def question_id(one: Any, where: str) -> str:
    """Returns the id of a question or an annotation as a text. Raises VlpipeError if it has none."""
    found = one.get("question_id") if isinstance(one, dict) else None
    if isinstance(found, bool) or not isinstance(found, (int, str)) or found == "":
        raise VlpipeError(f"{where}: wanted a question_id, a number or text, got {shown(found)}")
    return str(found)


@dataclass(frozen=True, kw_only=True)
class AnswerLabels(GatherStage):
    """Artifact answers.json: the common answers of VQA, the commonest first; the place of an answer is its label.

    annotations: JSON of VQA v2, several for training and validation. min_count: how often an answer must be the commonest
    of its question (`multiple_choice_answer`). https://visualqa.org/evaluation.html
    """

    ROWS_ARE: ClassVar[str] = "none"
    NAME: ClassVar[str] = "lists.vqa:AnswerLabels"
    VERSION: ClassVar[int] = 2  # contractions have their apostrophes

    annotations: tuple[File, ...]
    min_count: Annotated[int, Field(ge=1)] = 9

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return pa.schema([])

    def run(self, job: Job) -> None:
        counts: Counter[str] = Counter()
        for file in self.annotations:
            for where, one in _annotations(file.path):
                counts[normalised(wanted(one, "multiple_choice_answer", str, where))] += 1
        common = sorted((a for a, n in counts.items() if n >= self.min_count), key=lambda a: (-counts[a], a))
        if not common:
            raise VlpipeError(f"no answer occurs {self.min_count} times, as min_count wants")
        (Path(job.artifacts) / "answers.json").write_text(json.dumps(common, indent=0))
        job.say(f"{len(common):,} of {len(counts):,} answers occur at least {self.min_count} times")


def read_labels(path: str) -> dict[str, int]:
    """Returns answer -> label of a JSON file, [answer, ...] or {answer: label}. Raises VlpipeError if it is neither."""
    content = load_json(path)
    if isinstance(content, list):
        found = {text_of(answer, f"{path}: [{label}]"): label for label, answer in enumerate(content)}
    elif isinstance(content, dict):
        found = {text_of(answer, path): whole_number(content, answer, path) for answer in content}
    else:
        raise VlpipeError(f"{path}: wanted a list of answers, or an object of labels by answer")
    if len(found) < len(content):
        raise VlpipeError(f"{path}: an answer occurs more than once")
    if wrong := [answer for answer, label in found.items() if not 0 <= label < 1 << 31]:
        raise VlpipeError(f"{path}: the label of {shown(wrong[0])} is {found[wrong[0]]}, wanted 0 or more")
    return found


def _annotations(path: str) -> Iterator[tuple[str, Any]]:
    for n, one in enumerate(wanted(load_json(path), "annotations", list, path)):
        yield f"{path}: annotations[{n}]", one


def _scores(
    path: str, labels: Mapping[str, int], leave_one_out: bool
) -> Iterator[tuple[str, str, dict[int, float]]]:
    """Yields (place in the file, question id, label -> score)."""
    for where, one in _annotations(path):
        answers = wanted(one, "answers", list, where)
        counts = Counter(
            normalised(wanted(a, "answer", str, f"{where}: answers[{n}]")) for n, a in enumerate(answers)
        )
        score = partial(left_out, num_people=len(answers)) if leave_one_out else agreed
        known = {labels[answer]: score(n) for answer, n in counts.items() if answer in labels}
        yield where, question_id(one, where), known


def by_question(found: Iterable[tuple[str, str, T]]) -> dict[str, T]:
    """Returns question id -> value, from (place in the file, question id, value). Raises VlpipeError for one given twice."""
    given: dict[str, T] = {}
    for where, number, value in found:
        if number in given:
            raise VlpipeError(f"{where}: an earlier annotation is of question {number}, too")
        given[number] = value
    return given


def agreed(num: int) -> float:
    """Returns the score of an answer that `num` people gave: min(1, num / 3)."""
    return min(1.0, num / ANNOTATORS)


def left_out(num: int, num_people: int) -> float:
    """Returns the mean of `agreed` over all choices of `num_people` people but one, of an answer that `num` of them gave.

    https://visualqa.org/evaluation.html
    """
    return (num * agreed(num - 1) + (num_people - num) * agreed(num)) / num_people


PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
NUMBERS = {"none": "0", **{word: str(n) for n, word in enumerate(DIGITS)}}


# VQA's evaluation puts an apostrophe into these words where one is missing. "I'm" and the like are not among them: the
# released list has them in capitals, which texts in lower case never match.
CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's how'd
how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've o'clock oughtn't
'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've
someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've
they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've
who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd
you'd've you'll you're you've
"""


def _without_one(word: str) -> Iterator[str]:
    """Yields a word without each of its apostrophes."""
    for place, sign in enumerate(word):
        if sign == "'":
            yield word[:place] + word[place + 1 :]


WHOLE = {short: word for word in CONTRACTIONS.split() for short in _without_one(word)} | {
    "somebody'd": "somebodyd"
}  # sic


def normalised(answer: str) -> str:
    """Returns an answer as VQA's evaluation compares it: in lower case, without articles and most punctuation, with digits
    for numbers up to ten, and with the apostrophes of contractions ("dont" is "don't").

    The evaluation leaves the people's answers as they are if all ten said the same; here all are normalised.
    https://visualqa.org/evaluation.html
    """
    text = given = " ".join(answer.split())
    has_number = re.search(r"\d,\d", given) is not None
    for sign in PUNCTUATION:
        loose = f"{sign} " in given or f" {sign}" in given or has_number
        text = text.replace(sign, "" if loose else " ")
    text = re.sub(r"\.(?!\d)", "", text)
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(WHOLE.get(word, word) for word in words if word not in ("a", "an", "the"))
