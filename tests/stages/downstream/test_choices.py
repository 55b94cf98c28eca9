"""One of several texts: VCR's files, the stream of choices, scores by hand, and a head that training steps finetune."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from vlpipe.models import folder
from vlpipe.models.interface.batch import IGNORE, Batch, Stream
from vlpipe.models.interface.objective import Term
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.downstream.choose import Choose
from vlpipe.models.systems.image_text.vilt import Vilt
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File, ListFile, Weights
from vlpipe.pipeline.shard import heavy
from vlpipe.pipeline.testing import dataset, run_gather, run_map
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.demo.downstream.reasoning import ReasoningWorld
from vlpipe.stages.downstream.chosen import ChoiceScores, Hits, figures
from vlpipe.stages.downstream.vcr import VcrQuestions, spoken
from vlpipe.stages.loading.makers.downstream.choices import CHOICES, Choices
from vlpipe.stages.loading.rows import Row
from vlpipe.stages.train.recipe import InitPart
from vlpipe.stages.train.train import Train

LINE: dict[str, Any] = {
    "movie": "any",
    "img_fn": "a/1.jpg",
    "metadata_fn": "a/1.json",
    "objects": ["person", "person", "dog"],
    "annot_id": "val-0",
    "question": ["What", "are", [0, 2], "doing", "?"],
    "answer_choices": [["They", "run", "."], [[1], "is", "old", "."], ["Nothing", "."], ["No", "."]],
    "answer_label": 1,
    "rationale_choices": [["Because", "."], ["So", "."], ["Yes", "."], [[0], "looks", "so", "."]],
    "rationale_label": 3,
}
SIZES: dict[str, Any] = {
    "image_size": 16,
    "patch_size": 8,
    "width": 32,
    "layers": 1,
    "heads": 2,
    "max_text_length": 16,
}


def entry(
    question: str, label: int | None, *choices: str, name: str = "n", task: str = "answer"
) -> dict[str, Any]:
    return {"question": question, "choices": list(choices), "label": label, "name": name, "task": task}


@pytest.fixture
def read(tmp_path: Path, picture: Callable[..., bytes]) -> Callable[..., list[dict[str, Any]]]:
    def make(*lines: dict[str, Any]) -> list[dict[str, Any]]:
        (tmp_path / "images/a").mkdir(parents=True, exist_ok=True)
        (tmp_path / "images/a/1.jpg").write_bytes(picture())
        path = tmp_path / "val.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        stage = VcrQuestions(examples=ListFile(path=str(path)), images=File(path=str(tmp_path / "images")))
        found: list[dict[str, Any]] = run_map(stage, pa.concat_tables(stage.rows())).table.to_pylist()
        return found

    return make


def test_an_annotation_is_two_questions(read: Callable[..., list[dict[str, Any]]]) -> None:
    (row,) = read(LINE, {**LINE, "annot_id": "val-1", "question": ["Why", "?"]})
    assert row["url"] == "a/1.jpg"
    answer, rationale = row["choices"][:2]
    asked = "What are person 1 and dog 3 doing ?"
    assert answer == entry(asked, 1, "They run .", "person 2 is old .", "Nothing .", "No .", name="val-0")
    told = ("Because .", "So .", "Yes .", "person 1 looks so .")
    assert rationale == entry(f"{asked} person 2 is old .", 3, *told, name="val-0", task="rationale")
    assert [one["text"] for one in row["texts"]] == [one["question"] for one in row["choices"]]
    assert [one["name"] for one in row["choices"]] == ["val-0", "val-0", "val-1", "val-1"]


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"answer_label": 4}, "line 1: answer_label is 4, wanted the place of one of 4 texts"),
        ({"question": [[3]]}, r"line 1: .* \['3'\] is no word and no list of places of 3 objects"),
        ({"question": [[-1]]}, r"line 1: .* \['-1'\] is no word and no list of places of 3 objects"),
        ({"question": [[0.5]]}, "wanted a whole number as 'place'"),
        ({"question": "Why?"}, "line 1: .*; a text is 'Why\\?', wanted a list of words"),
        ({"question": []}, "line 1: the question is empty"),
        (
            {"answer_choices": "abcd"},
            "line 1: wanted a JSON object with the key 'answer_choices' and an array",
        ),
        ({"answer_choices": ["abcd"] * 4}, "a text is 'abcd', wanted a list of words"),
        ({"objects": "person"}, "line 1: wanted a JSON object with the key 'objects' and an array"),
        ({"objects": ["\ud800"] * 3}, "line 1: objects: the text has an unpaired surrogate"),
        ({"annot_id": None}, "line 1: the annot_id is empty"),
        ({"answer_label": float("inf")}, "line 1: wanted a whole number as 'answer_label', got inf"),
        ({"answer_label": True}, "line 1: wanted a whole number as 'answer_label', got True"),
        ({"rationale_choices": None}, "line 1: wanted a JSON object with the key 'rationale_choices'"),
    ],
)
def test_what_is_wrong_in_an_annotation(
    read: Callable[..., list[dict[str, Any]]], change: dict[str, Any], wrong: str
) -> None:
    with pytest.raises(VlpipeError, match=wrong):
        read({**LINE, **change})


def test_objects_are_named_and_numbered() -> None:
    assert spoken([[0], "'s", "dog", [1, 0]], ["man", "dog"]) == "man 1 's dog dog 2 and man 1"


def test_choices_are_pairs_of_segments() -> None:
    tokenizer = Tokenizer.train(["is it red blue no way"] * 3, 60)
    maker, rng = Choices(tokenizer=tokenizer, max_length=8), np.random.default_rng(0)
    column = pa.scalar([entry("is it", 1, "red", "no way"), entry("way", None, "blue")], CHOICES)
    row = Row("r", 0, ["is it", "way"], {"choices": column})
    stream = maker.collate([maker(row, one, rng) for one in row.texts])
    assert stream.data.shape[:2] == (2, 2)
    ids, _, segment = tokenizer.encode_pair("is it", "no way", 8)
    length = len(ids)
    assert stream.data[0, 1, :length].tolist() == ids
    assert stream.extra["segment"][0, 1, :length].tolist() == segment
    assert stream.mask is not None
    assert stream.mask.sum(-1).tolist() == [
        [length - 1, length],
        [len(tokenizer.encode_pair("way", "blue", 8)[0]), 0],
    ]
    assert stream.target["label"].tolist() == [1, IGNORE]
    with pytest.raises(VlpipeError, match="row r: the column `choices` has no choices for 'why'"):
        maker(row, "why", rng)


def test_the_loss_is_the_cross_entropy_of_the_choices_that_are_there() -> None:
    scores = torch.tensor([[1.0, 2.0, 0.5], [0.3, -0.3, float("-inf")], [0.0, 0.0, 0.0]], requires_grad=True)
    labels = {"label": torch.tensor([1, 1, IGNORE])}
    batch = Batch({"choices": Stream(torch.zeros(3, 3, 1), target=labels)}, torch.arange(3))
    found = Choose()(Outputs(None, batch, given={"choice_scores": scores}))
    loss, right = found["choice"], found["choice_accuracy"]
    assert isinstance(loss, Term)
    assert isinstance(right, Term)
    p = scores.detach().softmax(1)
    torch.testing.assert_close(loss.total.detach(), -(p[0, 1].log() + p[1, 1].log()))
    assert (int(loss.count), float(right.total)) == (2, 1.0)
    (gradient,) = torch.autograd.grad(loss.total, scores)
    torch.testing.assert_close(gradient[0], p[0] - torch.tensor([0.0, 1.0, 0.0]))
    assert not gradient[2].any()


def test_both_right_counts_once_for_each_name() -> None:
    hits: Hits = defaultdict(dict)
    hits["a"] = {"answer": ("r", True), "rationale": ("r", True)}
    hits["b"] = {"answer": ("r", True), "rationale": ("r", False)}
    hits["c"] = {"answer": ("s", True)}  # its rationale has no label
    found = {(task, name): right for task, name, _, right in figures(hits, ["answer", "rationale"])}
    assert {name: right for (task, name), right in found.items() if task == "all"} == {"a": True, "b": False}
    assert sum(task == "answer" for task, _ in found) == 3
    assert not any(task == "all" for task, *_ in figures(hits, ["answer"]))


def test_no_text_tells_the_right_choice(tmp_path: Path) -> None:
    """Of 4 choices, each place and each answer is right in about a quarter of the cases that it is offered."""
    out = run_gather(ReasoningWorld(num_train=600, num_eval=1), [], tmp_path)
    lines = [json.loads(line) for line in (out.artifacts / "train.jsonl").read_text().splitlines()]
    assert len(lines) > 800
    for task in ("answer", "rationale"):
        offered: dict[str, int] = defaultdict(int)
        right: dict[str, int] = defaultdict(int)
        for line in lines:
            choices = [spoken(one, ["x", "x"]) for one in line[f"{task}_choices"]]
            assert len(set(choices)) == 4
            for k, one in enumerate(choices):
                for name in (f"place {k}", one):
                    offered[name] += 1
                    right[name] += k == line[f"{task}_label"]
        for name, num in offered.items():
            assert abs(right[name] / num - 0.25) < 4 * (0.25 * 0.75 / num) ** 0.5, (name, right[name], num)
        assert len(offered) == 4 + (8 if task == "answer" else 18)


@pytest.mark.slow
def test_a_finetuned_model_chooses_by_its_image(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["what is it red green"] * 3, 60)
    folder.save(Vilt(vocab_size=tokenizer.vocab_size, init_std=0.1, **SIZES), tmp_path / "vilt")
    tokenizer.save(tmp_path / "vilt/tokenizer")
    rows = []
    for k in range(32):
        file = io.BytesIO()
        Image.new("RGB", (16, 16), (200, 20, k) if k % 2 else (20, 200, k)).save(file, "PNG")
        order = ["red", "green"] if k // 2 % 2 else ["green", "red"]
        choices = [entry("what is it", order.index("red" if k % 2 else "green"), *order, name=f"n{k}")]
        rows.append(
            {
                "id": f"r{k}",
                "texts": [text("what is it", "human")],
                "choices": choices,
                "image": file.getvalue(),
            }
        )
    schema = pa.schema(
        [("id", pa.string()), ("texts", TEXTS), ("choices", CHOICES), heavy("image", pa.binary())]
    )
    data = dataset(tmp_path / "rows", pa.Table.from_pylist(rows, schema), name="rows")
    base = {"use": "vilt:Vilt", "init_std": 0.1, **SIZES}
    recipe = Train(
        model={"use": "vlpipe.models.downstream.chooser:JointChooser", "base": base},
        tokenizer=File(path=str(tmp_path / "vilt/tokenizer")),
        init_parts=[InitPart(weights=Weights(path=str(tmp_path / "vilt")), into="base")],
        objectives=["choose:Choose"],
        batch_size=16,
        steps=80,
        lr=5e-3,
        loader_threads=1,
    )
    assert recipe.preflight() == []
    trained = run_gather(recipe, [data], tmp_path / "trained")
    out = run_gather(
        ChoiceScores(model=Weights(path=trained.artifacts), batch_size=16), [data], tmp_path / "scores"
    )
    found = {row["name"]: row["value"] for row in out.table.to_pylist()}
    assert found == {
        "accuracy/answer/true": 1.0,
        "accuracy/answer/swapped": 0.0,
        "accuracy/answer/prior": 0.5,
    }
