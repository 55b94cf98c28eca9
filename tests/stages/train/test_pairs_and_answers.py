"""BERT learns which sentence comes next, and LXMERT answers questions about regions: from rows to weights."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.testing import GatherOutput, dataset, run_gather
from vlpipe.stages.common.region_rows import region_fields, regions_array
from vlpipe.stages.common.row import LISTED, text
from vlpipe.stages.loading.makers.answer import ANSWERS
from vlpipe.stages.train.train import Train

COLOURS = ["red", "green", "blue", "white", "black", "pink"]
SHAPES = ["circle", "square", "ring"]
QUESTIONS = ("what colour is it", "what shape is it")
FEAT = 12


def tokenizer_of(folder: Path, rows: list[dict[str, Any]]) -> File:
    Tokenizer.train([one["text"] for row in rows for one in row["texts"]], vocab_size=120).save(folder)
    return File(path=str(folder))


def last(got: GatherOutput, name: str) -> float:
    return [row["value"] for row in got.table.to_pylist() if row["name"] == name][-1]


@pytest.mark.slow
def test_bert_learns_which_sentence_is_next(tmp_path: Path) -> None:
    """The second sentence of a row names the colour of the first."""
    rows = [
        {
            "id": f"{colour} {shape}",
            "url": "",
            "texts": [
                text(f"I see a {colour} {shape}.", "human"),
                text(f"it is as {colour} as can be.", "human"),
            ],
        }
        for colour, shape in product(COLOURS, SHAPES)
    ]
    data = dataset(tmp_path, pa.Table.from_pylist(rows, LISTED), name="pairs")
    recipe = Train(
        model={
            "use": "bert:Bert",
            "width": 48,
            "layers": 2,
            "heads": 4,
            "max_text_length": 32,
            "dropout": 0.0,
            "init_std": 0.1,
        },
        tokenizer=tokenizer_of(tmp_path / "vocabulary", rows),
        streams={"text": {"use": "text_pair:TextPair"}},
        views={"next": [{"use": "mismatch_second:MismatchSecond"}]},
        objectives=[{"use": "match:Match", "view": "next"}],
        texts="images",
        batch_size=36,
        steps=300,
        lr=2e-3,
        warmup_steps=20,
        log_every=50,
        loader_threads=1,
    )
    got = run_gather(recipe, [data], tmp_path / "run")
    assert last(got, "match_accuracy") > 0.95
    assert last(got, "match") < 0.15  # 0.69 by chance


def regions_of(colours: list[int], shapes: list[int]) -> pa.Array:
    """One region per image: a noisy one-hot feature of its colour and shape."""
    rng = np.random.default_rng(0)
    found = []
    for colour, shape in zip(colours, shapes, strict=True):
        feat = rng.normal(0, 0.05, (1, FEAT))
        feat[0, [colour, len(COLOURS) + shape]] += 1
        zeros = np.zeros(1)
        box = np.array([[0, 0, 8, 8]])
        scalars = {"obj": zeros, "obj_conf": zeros, "attr": zeros, "attr_conf": zeros}
        found.append({"feat": feat, "box": box, "prob": np.ones((1, 2)) / 2, **scalars})
    return regions_array(found, FEAT, 2)


def questions(tmp_path: Path) -> tuple[list[dict[str, Any]], Any]:
    """60 images, each with two questions; a third text is none. Labels: the colours, then the shapes."""
    kinds = [(k % len(COLOURS), k // 20) for k in range(60)]
    rows = [
        {
            "id": f"row{k}",
            "url": "",
            "texts": [text(one, "human") for one in (*QUESTIONS, "look at it")],
            "answers": [
                {"question": question, "label": label, "score": 1.0}
                for question, label in zip(QUESTIONS, (colour, len(COLOURS) + shape), strict=True)
            ],
        }
        for k, (colour, shape) in enumerate(kinds)
    ]
    schema = pa.schema([*LISTED, ("answers", ANSWERS)])
    table = pa.Table.from_pylist(rows, schema)
    column = regions_of(*(list(one) for one in zip(*kinds, strict=True)))
    table = table.append_column(region_fields(FEAT, 2)[0], column)
    for side in ("width", "height"):
        table = table.append_column(side, pa.array([8] * 60, pa.int32()))
    return rows, table


def lxmert(tokenizer: File, **more: Any) -> Train:
    sizes = {
        "width": 48,
        "heads": 4,
        "language_layers": 1,
        "object_layers": 1,
        "cross_layers": 1,
        "max_text_length": 16,
    }
    nums = {
        "feat_dim": FEAT,
        "num_objects": 2,
        "num_attributes": 2,
        "num_answers": len(COLOURS) + len(SHAPES),
    }
    recipe: dict[str, Any] = {
        "model": {"use": "lxmert:Lxmert", **sizes, **nums, "dropout": 0.0, "init_std": 0.1},
        "tokenizer": tokenizer,
        "views": {"wrong": [{"use": "mismatch:Mismatch", "stream": "text", "rate": 0.2}]},
        "objectives": [{"use": "answer:Answer", "view": "wrong"}],
        "batch_size": 36,
        "steps": 120,
        "lr": 2e-3,
        "warmup_steps": 20,
        "log_every": 40,
        "loader_threads": 1,
    }
    return Train(**{**recipe, **more})


@pytest.mark.slow
def test_lxmert_learns_to_answer(tmp_path: Path) -> None:
    """Which of two features is asked for, the question says; by chance 0.25 are right."""
    rows, table = questions(tmp_path)
    recipe = lxmert(tokenizer_of(tmp_path / "vocabulary", rows))
    got = run_gather(recipe, [dataset(tmp_path, table, name="questions")], tmp_path / "run")
    assert last(got, "answer_accuracy") > 0.95
    assert last(got, "answer") < 0.3


def test_rows_without_answers_are_named(tmp_path: Path) -> None:
    rows, table = questions(tmp_path)
    recipe = lxmert(tokenizer_of(tmp_path / "vocabulary", rows))
    data = dataset(tmp_path, table.drop_columns(["answers"]), name="questions")
    with pytest.raises(
        VlpipeError, match="step 'questions' has no column answers, which a stream is made from"
    ):
        run_gather(recipe, [data], tmp_path / "run")


def test_a_model_without_the_head_answers_nothing(tmp_path: Path) -> None:
    rows, _ = questions(tmp_path)
    tokenizer = tokenizer_of(tmp_path / "vocabulary", rows)
    recipe = lxmert(tokenizer)
    assert recipe.model is not None
    no_head = lxmert(tokenizer, model={**recipe.model, "num_answers": 0})
    assert recipe.preflight() == []
    assert "Answer needs a model that has more than Lxmert offers (Answers" in no_head.preflight()[0]
