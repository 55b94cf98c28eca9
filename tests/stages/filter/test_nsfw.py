from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from transformers import ViTForImageClassification

from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.common.pixels import decode
from vlpipe.stages.common.rule import Rule, encoder_of
from vlpipe.stages.common.scores import processed
from vlpipe.stages.filter.nsfw import ImageClassifier
from vlpipe.stages.filter.rules import Rules

Rows = Callable[..., pa.Table]


def test_the_column_is_the_labels_probability(vit_folder: Path, image_rows: Rows) -> None:
    weights = Weights(path=str(vit_folder))
    table = image_rows([[]] * 20)
    out = run_map(ImageClassifier(model=weights, batch_size=16), table).table
    model, prepare = ViTForImageClassification.from_pretrained(vit_folder).eval(), processed(weights)
    for data, found in zip(table["image"].to_pylist(), out["nsfw"].to_pylist(), strict=True):
        with torch.inference_mode():
            logits = model(torch.from_numpy(prepare(decode(data)))[None]).logits
        assert found == pytest.approx(logits.softmax(1)[0, 1].item(), abs=1e-5)
    alone = run_map(ImageClassifier(model=weights, batch_size=16), table.slice(7, 1)).table
    assert alone["nsfw"].to_pylist() == out["nsfw"].to_pylist()[7:8]
    other = run_map(ImageClassifier(model=weights, label="normal", column="safe", batch_size=16), table).table
    assert other["safe"].to_pylist() == pytest.approx([1 - p for p in out["nsfw"].to_pylist()], abs=1e-6)


def test_a_rule_decides_and_is_bound_to_the_model(vit_folder: Path, image_rows: Rows) -> None:
    stage = ImageClassifier(model=Weights(path=str(vit_folder)), batch_size=16)
    table = image_rows([[]] * 20)
    assert encoder_of(stage.schema(table.schema), "nsfw") == "tiny-vit"
    scored = run_map(stage, table).table
    middle = sorted(scored["nsfw"].to_pylist())[9]
    rules = Rules(rules=(Rule(column="nsfw", op="<=", value=middle, encoder="tiny-vit"),))
    out = run_map(rules, scored)
    assert out.table.num_rows == 10
    assert {(r.kind, r.why) for r in out.rejects} == {("filtered", "nsfw")}


def test_an_unreadable_image_is_a_reject(vit_folder: Path, image_rows: Rows) -> None:
    out = run_map(
        ImageClassifier(model=Weights(path=str(vit_folder)), batch_size=16), image_rows([[]], [b""])
    )
    assert [(r.id, r.kind, r.why) for r in out.rejects] == [("row0", "fault", "empty")]


def test_a_label_the_model_does_not_have_is_said(vit_folder: Path) -> None:
    stage = ImageClassifier(model=Weights(path=str(vit_folder)), label="nsfv")
    assert stage.preflight() == ["the model has no label 'nsfv'; did you mean 'nsfw'?"]
