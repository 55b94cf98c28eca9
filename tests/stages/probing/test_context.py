"""Learned contexts as a stage: what is learned from a few images, with which prompts it is compared, its artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from probing_toys import colours, labelled_rows
from safetensors.torch import load_file

from vlpipe.models import folder
from vlpipe.models.systems.image_text.clip import Clip
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.testing import dataset, run_gather
from vlpipe.stages.probing.context import LearnedContext
from vlpipe.stages.probing.features import Labelled
from vlpipe.stages.train.train import Train

SHARED: dict[str, Any] = {
    "batch_size": 16,
    "decode_workers": 0,
    "precision": "fp32",
    "classes": ["red", "green", "blue"],
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """An untrained CLIP: its image features tell colours apart, but no text is near the right ones."""
    path = tmp_path_factory.mktemp("clip")
    tokenizer = Tokenizer.train_bpe(["a photo of red green blue ."] * 5, 600, "clip")
    torch.manual_seed(0)
    sizes = {"image_size": 8, "patch_size": 4, "vision_width": 16, "vision_layers": 1, "vision_heads": 2}
    texts = {"text_width": 16, "text_layers": 1, "text_heads": 2, "max_text_length": 12, "embed_dim": 8}
    model = Clip.from_spec({**sizes, **texts}, tokenizer)
    with torch.no_grad():
        for parameter in model.text.blocks.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)  # else the context hardly reaches the end token
    folder.save(model, path)
    tokenizer.save(path / "tokenizer")
    return Weights(path=str(path))


def learned(clip: Weights, tmp_path: Path, **more: Any) -> tuple[dict[str, float], Path]:
    train = dataset(tmp_path / "train", labelled_rows(*colours(60, 0, spread=130)), "train")
    test = dataset(tmp_path / "test", labelled_rows(*colours(60, 1, spread=130), "test"), "test")
    stage = LearnedContext(model=clip, **{**SHARED, "num_context": 4, "epochs": 40, "lr": 0.2, **more})
    assert stage.preflight() == []
    out = run_gather(stage, [train, test], tmp_path / "out")
    return {row["name"]: row["value"] for row in out.table.to_pylist()}, out.artifacts


@pytest.mark.parametrize("specific", [False, True])
def test_a_context_is_learned_through_the_frozen_encoder(
    clip: Weights, tmp_path: Path, specific: bool
) -> None:
    found, artifacts = learned(clip, tmp_path, class_specific=specific)
    assert found["coop"] > max(found["zero_shot"], found["coop_prior"]) + 0.15
    context = load_file(artifacts / "context.safetensors")["context"]
    assert context.shape == ((3, 4, 16) if specific else (4, 16))
    assert (artifacts / "words.md").exists() is not specific


def test_it_is_learned_twice_the_same_and_the_model_is_unchanged(clip: Weights, tmp_path: Path) -> None:
    before = Path(clip.path, "model.safetensors").read_bytes()
    one, two = (load_file(learned(clip, tmp_path / n, epochs=3)[1] / "context.safetensors") for n in "ab")
    assert torch.equal(one["context"], two["context"])
    assert Path(clip.path, "model.safetensors").read_bytes() == before


def test_it_starts_from_words(clip: Weights, tmp_path: Path) -> None:
    """At a vanishing rate the context stays theirs, and prompts classify as the template of the same words does."""
    more = {"init_words": "a photo of a", "epochs": 1, "lr": 1e-12, "weight_decay": 0.0}
    found, artifacts = learned(clip, tmp_path, **more, templates=["a photo of a {} ."], position="end")
    assert found["coop"] == pytest.approx(found["zero_shot"], abs=0.05)
    lines = (artifacts / "words.md").read_text().splitlines()
    assert [line.split("`")[1].removesuffix("</w>") for line in lines[2:]] == ["a", "photo", "of", "a"]
    with pytest.raises(VlpipeError, match="init_words: 2 tokens, but num_context is 4"):
        learned(clip, tmp_path / "b", init_words="a photo")


def test_shots_are_drawn_by_id(clip: Weights) -> None:
    ids = [f"id{k}" for k in range(30)]
    rows = Labelled(np.zeros((30, 1), np.float32), np.arange(30) % 3, ids)
    few = LearnedContext(model=clip, **SHARED, shots=4)._few(rows)
    assert np.bincount(few.labels).tolist() == [4, 4, 4]
    again = LearnedContext(model=clip, **SHARED, shots=4)._few(rows.rows(np.arange(30)[::-1]))
    assert set(few.ids) == set(again.ids)
    assert len(LearnedContext(model=clip, **SHARED, shots=None)._few(rows)) == 30
    assert set(LearnedContext(model=clip, **SHARED, shots=4, seed=1)._few(rows).ids) != set(few.ids)


def test_what_cannot_be_learned_is_said(clip: Weights, tmp_path: Path) -> None:
    for more, message in (
        ({"classes": ["red", "green"]}, "2 names, but there is a label 2"),
        (
            {"num_context": 16},
            "class 'red' with 16 context vectors has 20 tokens, but there are 12 positions",
        ),
    ):
        with pytest.raises(VlpipeError, match=message):
            learned(clip, tmp_path, **more)
    bad = {"classes": ["a", "a"], "output": "class_token", "templates": ["a photo"]}
    assert len(LearnedContext(model=clip, **{**SHARED, **bad}).preflight()) == 3
    steps = {"mae": Train(model={"use": "mae:Mae"}, objectives=["pixel_mse:PixelMse"], steps=1)}
    (problem,) = LearnedContext(model=Weights(step="mae"), **SHARED).preflight_after(steps)
    assert "a Mae, which does not have what this step needs" in problem
