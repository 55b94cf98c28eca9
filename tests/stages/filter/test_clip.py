from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from transformers import AutoTokenizer, CLIPModel

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.common.model import load
from vlpipe.stages.common.pixels import decode, load_pixels
from vlpipe.stages.common.row import text
from vlpipe.stages.common.rule import encoder_of
from vlpipe.stages.common.scores import processed
from vlpipe.stages.export.transformers import ExportHF
from vlpipe.stages.filter.clip import ClipScore
from vlpipe.stages.train.train import Train

Rows = Callable[..., pa.Table]
SENTENCES = ("a red circle", "two dogs", "a blue dog", "red", "ein Hund dogs dogs dogs dogs dogs dogs dogs a")


def mixed(num_rows: int) -> list[list[dict[str, Any]]]:
    return [[text(SENTENCES[(i + j) % 5], "web") for j in range(i % 4)] for i in range(num_rows)]


def scores(folder: Path, table: pa.Table) -> dict[str, list[float]]:
    out = run_map(ClipScore(model=Weights(path=str(folder)), batch_size=16), table).table
    return dict(zip(out["id"].to_pylist(), out["clip_score"].to_pylist(), strict=True))


def test_the_score_is_the_models_cosine(clip_folder: Path, image_rows: Rows) -> None:
    """Against transformers called for one pair at a time, without padding."""
    table = image_rows(mixed(8))
    found = scores(clip_folder, table)
    model = CLIPModel.from_pretrained(clip_folder).eval()
    tokenizer, prepare = AutoTokenizer.from_pretrained(clip_folder), processed(Weights(path=str(clip_folder)))
    for row in table.to_pylist():
        pixels = torch.from_numpy(prepare(decode(row["image"])))[None]
        for entry, score in zip(row["texts"], found[row["id"]], strict=True):
            tokens = tokenizer([entry["text"]], truncation=True, max_length=8, return_tensors="pt")
            with torch.inference_mode():
                out = model(pixel_values=pixels, **tokens)
            logit = out.logits_per_image[0, 0].item() / model.logit_scale.exp().item()
            assert score == pytest.approx(logit, abs=1e-5)
    assert len({s for ss in found.values() for s in ss}) > 8


def test_a_model_of_this_package_gives_its_own_cosine(weights: Weights, image_rows: Rows) -> None:
    """One pair at a time, each text padded to the model's positions."""
    table = image_rows(mixed(8))
    found = run_map(ClipScore(model=weights, batch_size=16), table).table["clip_score"].to_pylist()
    model = load(weights, 24)
    for row, scores_of in zip(table.to_pylist(), found, strict=True):
        image = model.embed_images(torch.from_numpy(load_pixels([row["image"]], 16)))[0]
        for entry, score in zip(row["texts"], scores_of, strict=True):
            text_ = model.embed_texts(*model.tokenizer.encode([entry["text"]], 24))[0]
            assert score == pytest.approx(float(image @ text_), abs=1e-5)
    assert len({round(s, 4) for ss in found for s in ss}) > 8
    assert encoder_of(
        ClipScore(model=Weights(path="x", step="scorer")).schema(table.schema), "clip_score"
    ) == ("step:scorer")


def test_a_step_whose_model_reads_no_text_is_refused(tmp_path: Path) -> None:
    mae = Train(model={"use": "mae:Mae"}, objectives=["pixel_mse:PixelMse"], steps=1)
    stage = ClipScore(model=Weights(path="x", step="made"))
    (problem,) = stage.preflight_after({"made": mae})
    assert problem.startswith("step 'made' makes a Mae, which does not have what this step needs")
    assert stage.preflight_after({"made": ExportHF(model=Weights(path="x"))}) == []


def test_a_row_gets_equal_bits_alone_in_any_company_and_order(clip_folder: Path, image_rows: Rows) -> None:
    table = image_rows(mixed(20))
    together = scores(clip_folder, table)
    assert scores(clip_folder, table.slice(3, 1)) == {"row3": together["row3"]}
    assert scores(clip_folder, table.take(list(range(19, -1, -1)))) == together


def test_dropped_texts_have_no_score_and_bad_images_are_rejects(clip_folder: Path, image_rows: Rows) -> None:
    texts = [[text("red", "web", kept=False, why="junk"), text("red", "synth")], [text("red", "web")]]
    good = image_rows([[]])["image"][0].as_py()
    out = run_map(
        ClipScore(model=Weights(path=str(clip_folder)), batch_size=16), image_rows(texts, [good, b"GIF89a"])
    )
    (found,) = out.table["clip_score"].to_pylist()
    assert found[0] is None
    assert isinstance(found[1], float)
    assert [(r.id, r.kind) for r in out.rejects] == [("row1", "fault")]


def test_the_column_says_whose_scores_it_holds(clip_folder: Path, image_rows: Rows) -> None:
    schema = image_rows([[]]).schema

    def bound(**more: Any) -> str:
        return encoder_of(ClipScore(**more).schema(schema), "clip_score")

    assert bound(model=Weights(path="openai/clip-vit-base-patch32")) == "openai/clip-vit-base-patch32"
    assert bound(model=Weights(path=str(clip_folder))) == "tiny-clip"
    assert bound(model=Weights(path=str(clip_folder)), encoder="openai/clip-vit-base-patch32") == (
        "openai/clip-vit-base-patch32"
    )
    assert bound(model=Weights(step="pretrain")) == "step:pretrain"


def test_what_is_no_clip_model_is_said(tmp_path: Path) -> None:
    with pytest.raises(VlpipeError, match=f"{tmp_path}: transformers cannot load it as CLIPModel"):
        ClipScore(model=Weights(path=str(tmp_path))).open().__enter__()
