"""VQA's questions as rows with answers, with labels that a step makes; and what is wrong with such files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File, ListFile
from vlpipe.pipeline.testing import run_gather, run_map
from vlpipe.stages.lists.vqa import ANSWERS, AnswerLabels, VqaQuestions, _scores, normalised
from vlpipe.stages.loading.makers.answer import ANSWERS as READ
from vlpipe.stages.loading.makers.answer import Answer
from vlpipe.stages.loading.rows import Row

QUESTIONS = {
    "data_subtype": "val2014",
    "questions": [
        {"image_id": 42, "question": "What color is it? ", "question_id": 420},
        {"image_id": 7, "question": "How many dogs?", "question_id": 70},
        {"image_id": 42, "question": "Is it big?", "question_id": 421},
    ],
}


def annotation(number: int, *answers: str) -> dict[str, Any]:
    return {
        "question_id": number,
        "multiple_choice_answer": answers[0],
        "answers": [{"answer": answer, "answer_id": k} for k, answer in enumerate(answers)],
    }


ANNOTATIONS = {
    "annotations": [
        annotation(70, "two", "2", "3", "the two"),
        annotation(420, "Red", "red", "blue"),
        annotation(421, "yes", "no", "yes"),
    ]
}


def written(folder: Path, name: str, content: Any) -> str:
    (folder / name).write_text(json.dumps(content))
    return str(folder / name)


@pytest.fixture
def stage(tmp_path: Path, picture: Callable[..., bytes]) -> Callable[..., VqaQuestions]:
    (tmp_path / "images").mkdir()
    for number in (7, 42):
        (tmp_path / f"images/COCO_val2014_{number:012d}.jpg").write_bytes(picture())

    def make(questions: Any = QUESTIONS, annotations: Any = ANNOTATIONS, labels: Any = None) -> VqaQuestions:
        files = {
            "questions": questions,
            "annotations": annotations,
            "labels": ["2", "red", "yes", "no"] if labels is None else labels,
        }
        lists = {name: ListFile(path=written(tmp_path, name, content)) for name, content in files.items()}
        return VqaQuestions(images=File(path=str(tmp_path / "images")), **lists)

    return make


def test_a_row_per_image_with_its_questions_and_scored_answers(stage: Callable[..., VqaQuestions]) -> None:
    made = stage()
    out = run_map(made, pa.concat_tables(made.rows()))
    assert not out.rejects
    first, second = out.table.to_pylist()
    assert (first["url"], second["url"]) == ("COCO_val2014_000000000042.jpg", "COCO_val2014_000000000007.jpg")
    assert [t["text"] for t in first["texts"]] == ["What color is it?", "Is it big?"]
    found = [(a["question"], a["label"], round(a["score"], 3)) for a in first["answers"]]
    assert found == [("What color is it?", 1, 0.667), ("Is it big?", 2, 0.667), ("Is it big?", 3, 0.333)]
    assert [(a["label"], a["score"]) for a in second["answers"]] == [
        (0, 1.0)
    ]  # two, 2, the two; 3 has no label


def test_training_reads_what_it_writes(stage: Callable[..., VqaQuestions]) -> None:
    assert ANSWERS == READ
    made = stage()
    table = run_map(made, pa.concat_tables(made.rows())).table
    row = Row("a", 0, [], {"answers": table["answers"][0]})
    label = Answer(num_answers=4)(row, "What color is it?", np.random.default_rng(0))["data"]
    assert label == 1


def test_labels_are_the_common_answers(tmp_path: Path) -> None:
    files = []
    for name, answers in (
        ("train", ["yes"] * 3 + ["No."] * 2 + ["a dog"] * 2),
        ("val", ["no", "rare", "dog"]),
    ):
        content = {"annotations": [annotation(k, answer) for k, answer in enumerate(answers)]}
        files.append(File(path=written(tmp_path, name, content)))
    got = run_gather(AnswerLabels(annotations=tuple(files), min_count=2), [], tmp_path / "out")
    assert json.loads((got.artifacts / "answers.json").read_text()) == ["dog", "no", "yes"]
    with pytest.raises(VlpipeError, match="no answer occurs 9 times"):
        run_gather(AnswerLabels(annotations=tuple(files)), [], tmp_path / "none")


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("  The  Dog. ", "dog"),
        ("Two", "2"),
        ("none", "0"),
        ("red/white", "red white"),
        ("yes, it is", "yes it is"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("t-shirt", "t shirt"),
        ("I DONT know", "i don't know"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("the girl's", "girl's"),
        ("its o'clock", "its o'clock"),
        ("Twas ten oclock.", "'twas 10 o'clock"),
        ("2:30 p.m.", "2:30 pm"),
        ("x,y", "x y"),
        ("x, y", "x y"),
        ("one-two", "1 2"),
        ("$3.50 (USD)", "$3.50 usd"),
        ("im", "im"),  # the released list has "Im", after all was made lower case
        ("somebody'd", "somebodyd"),  # sic
    ],
)
def test_answers_are_compared_as_the_evaluation_does(answer: str, wanted: str) -> None:
    assert normalised(answer) == wanted


def test_people_who_leave_an_apostrophe_out_give_the_same_answer(tmp_path: Path) -> None:
    """Four of ten say "don't know": of the choices of nine, six have all four and four have three, each worth 1."""
    said = ["dont know"] * 2 + ["Don't know!", "the don't know", *["no"] * 6]
    content = {"annotations": [{"question_id": 1, "answers": [{"answer": one} for one in said]}]}
    [(_, _, found)] = _scores(written(tmp_path, "a.json", content), {"don't know": 0, "no": 1}, True)
    assert found == {0: 1.0, 1: 1.0}
    content = {
        "annotations": [{"question_id": 1, "answers": [{"answer": one} for one in said[:2] + said[4:]]}]
    }
    [(_, _, found)] = _scores(written(tmp_path, "b.json", content), {"don't know": 0}, True)
    assert found == {0: pytest.approx((2 * 1 / 3 + 6 * 2 / 3) / 8)}


def test_what_is_wrong_is_named_with_its_place(stage: Callable[..., VqaQuestions]) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        (
            {"questions": {"questions": [{"question": "What?", "image_id": "x"}]}},
            r"questions\[0\]: wanted a whole number as 'image_id', got 'x'",
        ),
        (
            {"questions": {"questions": [{"image_id": 7}]}},
            r"questions\[0\]: wanted a JSON object with the key 'question'",
        ),
        ({"questions": []}, "with the key 'questions'"),
        ({"annotations": {"annotations": []}}, "has no annotation of question 420"),
        (
            {"questions": {"questions": [{"question": "What?", "image_id": 7}]}},
            r"questions\[0\]: wanted a question_id, a number or text, got None",
        ),
        (
            {"questions": {"questions": [{"question": "What?", "image_id": float("inf")}]}},
            "wanted a whole number as 'image_id', got inf",
        ),
        (
            {"annotations": {"annotations": [{"question_id": 1, "answers": []}] * 2}},
            r"annotations\[1\]: an earlier annotation is of question 1, too",
        ),
        ({"labels": {"red": 1.5}}, "wanted a whole number as 'red', got 1.5"),
        ({"labels": {"red": -1}}, "the label of 'red' is -1, wanted 0 or more"),
        ({"labels": [["red"]]}, r"\[0\]: wanted text, got"),
        ({"labels": "red"}, "wanted a list of answers, or an object of labels by answer"),
        ({"labels": ["red", "red"]}, "an answer occurs more than once"),
    ]
    for changes, said in wrong:
        with pytest.raises(VlpipeError, match=said):
            list(stage(**changes).rows())
    assert next(stage(labels={"red": 5}).rows())["answers"].to_pylist()[0][0]["label"] == 5
