"""Answers as texts: the files of GQA, Visual Genome and VQA, their labels, and what is learned of a question."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from vlpipe.models.interface.batch import Batch, Stream
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.lm import next_tokens
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File, ListFile
from vlpipe.pipeline.testing import dataset, run_gather, run_map
from vlpipe.stages.downstream.examples import Example
from vlpipe.stages.downstream.generated import greedy, ranked, score_of
from vlpipe.stages.downstream.said import (
    AnswerSet,
    GqaQuestions,
    LabelAnswers,
    SaidAnswers,
    VgQuestions,
    VqaAnswers,
)
from vlpipe.stages.loading.makers.downstream.asked_answer import SAID, AskedAnswer
from vlpipe.stages.loading.rows import Row

Read = Callable[..., pa.Table]
GQA = {
    "01": {"imageId": "7", "question": "What color is it?", "answer": "Blue", "isBalanced": True},
    "02": {"imageId": "8", "question": "Is it big?", "answer": "no"},
    "03": {"imageId": "7", "question": "Is it big?", "answer": "yes"},
}
VG = [
    {"id": 7, "qas": [{"image_id": 7, "qa_id": 1, "question": "Where?", "answer": "On the left."}]},
    {"id": 8, "qas": []},
]


@pytest.fixture
def read(tmp_path: Path, picture: Callable[..., bytes]) -> Read:
    def make(cls: type[SaidAnswers], content: Any, **more: Any) -> pa.Table:
        (tmp_path / "images").mkdir(exist_ok=True)
        for name in ("7.jpg", "8.jpg"):
            (tmp_path / "images" / name).write_bytes(picture())
        (tmp_path / "q.json").write_text(json.dumps(content))
        given: dict[str, Any] = {"images": File(path=str(tmp_path / "images")), **more}
        stage = cls(questions=ListFile(path=str(tmp_path / "q.json")), **given)
        return run_map(stage, pa.concat_tables(stage.rows())).table

    return make


def said(*answers: tuple[str, str, float]) -> list[dict[str, Any]]:
    return [{"question": q, "answer": a, "score": pytest.approx(s)} for q, a, s in answers]


def test_questions_of_gqa(read: Read) -> None:
    rows = read(GqaQuestions, GQA).to_pylist()
    assert [row["url"] for row in rows] == ["7.jpg", "8.jpg"]
    assert rows[0]["said"] == said(("What color is it?", "blue", 1), ("Is it big?", "yes", 1))
    assert [one["text"] for one in rows[0]["texts"]] == ["What color is it?", "Is it big?"]


def test_questions_of_visual_genome(read: Read) -> None:
    (row,) = read(VgQuestions, VG).to_pylist()
    assert (row["url"], row["said"]) == ("7.jpg", said(("Where?", "on left", 1)))


def test_all_answers_of_vqa(read: Read, tmp_path: Path) -> None:
    people = ["2"] * 7 + ["Two", "three", "3"]
    annotations = {"annotations": [{"question_id": 1, "answers": [{"answer": one} for one in people]}]}
    (tmp_path / "a.json").write_text(json.dumps(annotations))
    content = {"data_subtype": "x", "questions": [{"image_id": 7, "question": "How many?", "question_id": 1}]}
    more = {"annotations": ListFile(path=str(tmp_path / "a.json")), "file_name": "{id}.jpg"}
    (row,) = read(VqaAnswers, content, **more).to_pylist()
    assert row["said"] == said(("How many?", "2", 1.0), ("How many?", "3", 0.6))
    with pytest.raises(VlpipeError, match=r"questions\[0\]: wanted a question with an annotation"):
        read(VqaAnswers, {**content, "questions": [{**content["questions"][0], "question_id": 2}]}, **more)


@pytest.mark.parametrize(
    ("cls", "content", "wrong"),
    [
        (GqaQuestions, [1], "wanted a JSON object of questions by their ids"),
        (
            GqaQuestions,
            {"01": {"question": "a", "answer": "b"}},
            "question 01: wanted a JSON object with the key 'imageId'",
        ),
        (
            GqaQuestions,
            {"01": {**GQA["01"], "answer": "the"}},
            "question 01: the question or its answer is empty",
        ),
        (VgQuestions, {}, "wanted a JSON array of images"),
        (
            VgQuestions,
            [{"qas": [{"question": "a", "answer": "b"}]}],
            r"\[0\].qas\[0\]: wanted a whole number as 'image_id', got None",
        ),
        (
            VgQuestions,
            [{"qas": [{"question": "a", "answer": "b", "image_id": [7]}]}],
            r"'image_id', got \[7\]",
        ),
    ],
)
def test_what_is_wrong_in_a_file(read: Read, cls: type[SaidAnswers], content: Any, wrong: str) -> None:
    with pytest.raises(VlpipeError, match=wrong):
        read(cls, content)


def test_common_answers_get_labels(tmp_path: Path) -> None:
    rows = [
        [("p", "red", 0.3), ("p", "blue", 1.0), ("q", "blue", 1.0)],
        [("p", "green", 1.0), ("p", "red", 0.3)],
        [("p", "red", 1.0)],
    ]
    answers = [[{"question": q, "answer": a, "score": s} for q, a, s in row] for row in rows]
    table = pa.table({"id": ["a", "b", "c"], "said": pa.array(answers, SAID)})
    out = run_gather(AnswerSet(max_answers=2), [dataset(tmp_path / "in", table)], tmp_path / "out")
    assert json.loads((out.artifacts / "answers.json").read_text()) == ["blue", "green"]  # 2, 1, 1
    labelled = run_map(LabelAnswers(labels=File(path=str(out.artifacts / "answers.json"))), table).table
    found = [[(a["question"], a["label"]) for a in row] for row in labelled["answers"].to_pylist()]
    assert found == [[("p", 0), ("q", 0)], [("p", 1)], []]
    with pytest.raises(VlpipeError, match="no answer occurs 3 times"):
        run_gather(AnswerSet(min_count=3), [dataset(tmp_path / "in2", table)], tmp_path / "out2")


TOKENIZER = Tokenizer.train(["is it red green blue dark"] * 3, 60)


def row_of(*answers: tuple[str, float]) -> Row:
    column = pa.scalar([{"question": "is it", "answer": a, "score": s} for a, s in answers], SAID)
    return Row("r", 0, ["is it"], {"said": column})


def test_the_answer_alone_is_learned() -> None:
    maker = AskedAnswer(tokenizer=TOKENIZER, max_length=10)
    rng = np.random.default_rng(0)
    row = row_of(("dark red", 0.9), ("blue", 0.0), ("green", 0.3))
    drawn = [maker(row, "is it", rng) for _ in range(200)]
    ids = TOKENIZER.ids
    kinds = {tuple(one["data"].tolist()) for one in drawn}
    before = [TOKENIZER.start, *ids("is it")]
    assert kinds == {(*before, *ids(one), TOKENIZER.end) for one in ("dark red", "green")}
    share = np.mean([len(one["data"]) == len(before) + 1 + len(ids("green")) for one in drawn])
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / 200) ** 0.5
    targets = next_tokens(maker.collate([maker(row_of(("green", 1.0)), "is it", rng)]))
    assert targets[targets >= 0].tolist() == [*ids("green"), TOKENIZER.end]
    short = AskedAnswer(tokenizer=TOKENIZER, max_length=4).asked("is it", "green")
    assert short["data"].tolist() == [TOKENIZER.start, ids("is")[0], *ids("green"), TOKENIZER.end]
    with pytest.raises(VlpipeError, match="no answer with a score above 0 to 'is it'"):
        maker(row_of(("green", 0.0)), "is it", rng)


class Script:
    """Says, of each image, an answer token by token: logits by position and image; `red` first is likely for all."""

    def __init__(self, answers: list[str]) -> None:
        self.ids = [[*TOKENIZER.ids(one), TOKENIZER.end] for one in answers]
        self.start = 1 + len(TOKENIZER.ids("is it"))

    def decoder_hidden(self, out: Outputs) -> torch.Tensor:
        image, text = out.stream("image").data, out.stream("text").data
        found = torch.zeros(*text.shape, TOKENIZER.vocab_size)
        for k, which in enumerate(image.tolist()):
            for at, token in enumerate(self.ids[which]):
                if self.start - 1 + at < text.shape[1]:
                    found[k, self.start - 1 + at, token] = 5.0
        found[..., TOKENIZER.mask] = 9.0  # never written
        return found

    def predict(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


def test_answers_are_written_and_ranked() -> None:
    model = Script(["dark red", "blue"])
    batch = Batch({"image": Stream(torch.tensor([1, 0])), "text": Stream(torch.zeros(2, 1))}, torch.arange(2))
    prompts = [[TOKENIZER.start, *TOKENIZER.ids("is it")]] * 2
    assert greedy(model, batch, prompts, TOKENIZER, 6) == ["blue", "dark red"]
    assert greedy(model, batch, prompts, TOKENIZER, len(TOKENIZER.ids("dark")))[1] == "dark"
    told = ["green", "red", "dark red", "blue"]
    assert ranked(model, batch, prompts, TOKENIZER, told, 4) == ["blue", "dark red"]
    assert ranked(model, batch, prompts, TOKENIZER, told[:2], 2)[0] in told[:2]


def test_a_written_answer_has_the_score_of_those_who_gave_it() -> None:
    one = Example(row_of(("2", 0.9), ("green", 0.3)), "is it", 0)
    assert [round(score_of(one, said), 3) for said in ("Two.", "green", "red")] == [0.9, 0.3, 0.0]
