"""BERT is finetuned by training steps, from our folders and from transformers', and its task is then solved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from transformers import BertConfig, BertForPreTraining

from vlpipe.models import folder
from vlpipe.models.systems.text.bert import Bert
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File, Weights
from vlpipe.pipeline.stage import Dataset
from vlpipe.pipeline.testing import dataset, run_gather
from vlpipe.stages.common.row import text
from vlpipe.stages.text_tasks.answered import SquadScores
from vlpipe.stages.text_tasks.classified import GlueScores
from vlpipe.stages.text_tasks.glue import EXAMPLES
from vlpipe.stages.text_tasks.squad import QUESTIONS
from vlpipe.stages.train.train import Train

SETTINGS: dict[str, Any] = {
    "texts": "images",
    "batch_size": 16,
    "lr": 5e-3,
    "loader_threads": 1,
    "warmup_steps": 2,
}
Make = Callable[[list[dict[str, Any]], pa.Schema], Dataset]


@pytest.fixture
def given(tmp_path: Path) -> Make:
    def make(rows: list[dict[str, Any]], schema: pa.Schema) -> Dataset:
        full = [{"id": f"r{k}", "url": f"q{k}", **row} for k, row in enumerate(rows)]
        return dataset(tmp_path / "rows", pa.Table.from_pylist(full, schema), name="rows")

    return make


@pytest.fixture
def pretrained(tmp_path: Path) -> Weights:
    tokenizer = Tokenizer.train(["a b c d e f g h who is good bad"] * 3, 80)
    sizes: dict[str, Any] = {"width": 24, "layers": 1, "heads": 2, "max_text_length": 16, "dropout": 0.0}
    torch.manual_seed(0)
    folder.save(Bert(vocab_size=tokenizer.vocab_size, init_std=0.1, **sizes), tmp_path / "bert")
    tokenizer.save(tmp_path / "bert" / "tokenizer")
    return Weights(path=str(tmp_path / "bert"))


def value(table: pa.Table, name: str) -> float:
    return next(row["value"] for row in table.to_pylist() if row["name"] == name)


def test_a_class_is_learned(given: Make, pretrained: Weights, tmp_path: Path) -> None:
    """Class 1 if the two sentences end alike; half of the rows. Rows without a label are left out."""
    rows = [
        {
            "texts": [text(f"{a} {b}", "human"), text(f"{c} {d}", "human")],
            "label": int(d == "good"),
            "score": None,
        }
        for a in "abcd"
        for b in "ef"
        for c in "gh"
        for d in ("good", "bad")
    ]
    rows.append({"texts": [text("a", "human")], "label": None, "score": None})
    data = given(rows, EXAMPLES)
    recipe = Train(
        init=pretrained,
        model={"num_classes": 2},
        objectives=["texts.classify:ClassifyTexts"],
        steps=30,
        **SETTINGS,
    )
    assert recipe.preflight() == []
    out = run_gather(recipe, [data], tmp_path / "trained")
    scores = run_gather(GlueScores(model=Weights(path=out.artifacts)), [data], tmp_path / "scores").table
    assert value(scores, "accuracy") == value(scores, "f1") == value(scores, "matthews") == 1.0
    assert value(scores, "accuracy_prior") == 0.5
    assert {row["num_rows"] for row in scores.to_pylist()} == {32}
    other = given([rows[0] | {"label": -1}], EXAMPLES)
    with pytest.raises(
        VlpipeError, match="label is -1, wanted a whole number from 0 and below num_classes 2"
    ):
        run_gather(GlueScores(model=Weights(path=out.artifacts)), [other], tmp_path / "other")


def test_a_score_is_learned(given: Make, pretrained: Weights, tmp_path: Path) -> None:
    score = {"a": 0.0, "b": 1.0, "c": 2.0, "d": 3.0}
    rows = [
        {"texts": [text(f"{a} {b}", "human")], "label": None, "score": score[a]}
        for a in score
        for b in "efgh"
    ]
    data = given(rows, EXAMPLES)
    recipe = Train(
        init=pretrained,
        model={"num_classes": 1},
        objectives=["texts.classify:ClassifyTexts"],
        steps=40,
        **SETTINGS,
    )
    out = run_gather(recipe, [data], tmp_path / "trained")
    scores = run_gather(GlueScores(model=Weights(path=out.artifacts)), [data], tmp_path / "scores").table
    assert value(scores, "pearson") > 0.95
    assert value(scores, "spearman") > 0.9


@pytest.mark.slow
def test_a_span_is_learned_and_none_is_said(given: Make, pretrained: Weights, tmp_path: Path) -> None:
    """The answer is the word before "is good"; without "good" there is none."""
    rows = [
        {
            "texts": [text("who", "human")],
            "context": f"{other} {name} is {word}",
            "answers": [{"text": name, "start": 2}] if word == "good" else [],
        }
        for name in "bcde"  # "a" is an article, and no answer
        for other in "fgh"
        for word in ("good", "bad")
    ]
    data = given(rows, QUESTIONS)
    recipe = Train(
        init=pretrained, model={"finds_spans": True}, objectives=["texts.spans:Span"], steps=200, **SETTINGS
    )
    assert recipe.preflight() == []
    out = run_gather(recipe, [data], tmp_path / "trained")
    stage = SquadScores(model=Weights(path=out.artifacts), can_decline=True)
    scores = run_gather(stage, [data], tmp_path / "scores").table
    assert value(scores, "exact/answered") > 0.9
    assert value(scores, "exact/unanswered") > 0.9


def test_it_starts_from_a_folder_of_transformers(given: Make, pretrained: Weights, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(pretrained.path)
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 40}
    config = BertConfig(vocab_size=tokenizer.vocab_size, max_position_embeddings=16, **sizes)
    theirs = BertForPreTraining(config)
    theirs.save_pretrained(tmp_path / "theirs")
    rows = [
        {"texts": [text(a, "human")], "label": k % 3, "score": None} for k, a in enumerate("abcdefgh" * 2)
    ]
    recipe = Train(
        init=Weights(path=str(tmp_path / "theirs")),
        tokenizer=File(path=f"{pretrained.path}/tokenizer"),
        model={"num_classes": 3},
        objectives=["texts.classify:ClassifyTexts"],
        freeze=["encoder.*"],
        steps=3,
        **SETTINGS,
    )
    out = run_gather(recipe, [given(rows, EXAMPLES)], tmp_path / "trained")
    model = folder.load(out.artifacts)
    assert model.class_head.weight.shape == (3, 24)
    words = theirs.bert.embeddings.word_embeddings.weight
    assert torch.equal(model.encoder.embed.words.weight, words)
