"""A model with batch norms trains and is exported; micro-batches, which would give other statistics, are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from vlpipe.models import folder
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.stage import Dataset
from vlpipe.pipeline.testing import run_gather
from vlpipe.stages.export.transformers import ExportHF
from vlpipe.stages.train.run import prepare
from vlpipe.stages.train.train import Train

RESNET = {
    "use": "clip:Clip",
    "image_size": 32,
    "vision_width": 8,
    "vision_layers": [1, 1, 1, 1],
    "vision_heads": 4,
    "text": "bag_of_words",
    "text_width": 16,
    "max_text_length": 12,
    "embed_dim": 8,
}


def test_it_trains_and_micro_batches_are_refused(
    recipe_of: Callable[..., Train], squares: Dataset, tmp_path: Path
) -> None:
    recipe = replace(recipe_of(teachers={}), model=RESNET, objectives=["infonce:InfoNce"], steps=3)
    assert recipe.preflight() == []
    trained = run_gather(recipe, [squares], tmp_path / "trained")
    model = folder.load(trained.artifacts)
    assert int(model.resnet.bn1.num_batches_tracked) == 3
    assert not torch.equal(model.resnet.bn1.running_mean, torch.zeros(4))
    (problem,) = replace(recipe, accumulate=2).preflight()
    assert problem.startswith("accumulate: model.resnet.bn1 is a batch norm")
    assert replace(recipe, accumulate=2, freeze=["resnet.*"]).preflight() == []


def test_teachers_get_the_statistics_and_what_is_frozen_stays_as_it_is(
    recipe_of: Callable[..., Train], squares: Dataset
) -> None:
    itc = {"use": "itc:Itc", "queue_size": 0, "alpha_ramp_epochs": 0}
    recipe = replace(recipe_of(teachers={"ema": {"momentum": 0.0}}), model=RESNET, objectives=[itc], steps=3)
    net = prepare(recipe, [squares]).net
    net.model.resnet.bn1.running_mean.fill_(5.0)
    net.update_teachers()
    assert torch.equal(net.teachers["ema"].copy.resnet.bn1.running_mean, torch.full((4,), 5.0))
    frozen = replace(recipe, freeze=["resnet.*"], accumulate=2)
    assert frozen.preflight() == []
    net = prepare(frozen, [squares]).net
    assert not net.model.resnet.bn1.training
    assert not net.teachers["ema"].copy.resnet.bn1.training
    assert net.teachers["ema"].copy.text_proj.training


def test_plan_knows_what_cannot_be_exported(recipe_of: Callable[..., Train], tmp_path: Path) -> None:
    recipe = replace(recipe_of(teachers={}), model=RESNET, objectives=["infonce:InfoNce"])
    words = {**RESNET, "text": "transformer", "text_layers": 1, "text_heads": 4}
    stages = {"bag": recipe, "resnet": replace(recipe, model=words), "blip": recipe_of()}

    def problems(step: str, kind: str | None) -> list[str]:
        weights = Weights(path=str(tmp_path), step=step)
        return ExportHF(model=weights, kind=kind).preflight_after(stages)

    assert problems("blip", "captioner") == problems("resnet", "open_clip") == []
    assert problems("resnet", None) == [
        "step 'resnet' makes a Clip: export: transformers has no CLIP with a ResNet; set kind: open_clip"
    ]
    assert problems("bag", "open_clip") == [
        "step 'bag' makes a Clip: export: no other library has CLIP with text: bag_of_words"
    ]
    assert problems("blip", None) == [
        "step 'blip' makes a Blip: export: Blip has the kinds captioner, retrieval, got None"
    ]


def test_a_resnet_is_exported_for_open_clip(
    recipe_of: Callable[..., Train], squares: Dataset, tmp_path: Path
) -> None:
    words = {**RESNET, "text": "transformer", "text_layers": 1, "text_heads": 4}
    recipe = replace(recipe_of(teachers={}), model=words, objectives=["infonce:InfoNce"], steps=1)
    trained = run_gather(recipe, [squares], tmp_path / "trained")
    stage = ExportHF(model=Weights(path=str(trained.artifacts)), kind="open_clip")
    got = run_gather(stage, [], tmp_path / "exported")
    assert {"open_clip_config.json", "open_clip_model.safetensors"} <= set(got.table["file"].to_pylist())
    config = json.loads((got.artifacts / "open_clip_config.json").read_text())
    assert config["model_cfg"]["vision_cfg"]["layers"] == [1, 1, 1, 1]
