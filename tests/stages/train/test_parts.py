"""Training of parts: frozen ones, groups of parameters, models that start from parts of others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vlpipe.models.optim.parameter_group import ParameterGroup
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.stage import Dataset
from vlpipe.pipeline.testing import run_gather
from vlpipe.stages.train.recipe import InitPart
from vlpipe.stages.train.run import prepare
from vlpipe.stages.train.train import Train

Make = Callable[..., Train]
OBJECTIVES = [{"use": "itc:Itc", "queue_size": 0}, "lm:Lm"]


def test_frozen_parts_stay_and_are_in_no_checkpoint(
    squares: Dataset, recipe_of: Make, tmp_path: Path
) -> None:
    recipe = recipe_of(steps=4, objectives=OBJECTIVES, freeze=["vision.*"], checkpoint_every=2)
    start = prepare(recipe, [squares])
    before = {name: value.clone() for name, value in start.net.model.state_dict().items()}
    assert not any(module.training for module in start.net.model.vision.modules())
    assert start.net.teachers["ema"].copy.text.training
    got = run_gather(recipe, [squares], tmp_path / "run")
    after = load_file(got.artifacts / "model.safetensors")
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert not any(name.startswith("vision.") for name in changed)
    assert {"text.words.weight", "vision_proj.weight"} <= changed
    saved = torch.load(tmp_path / "run/work/checkpoints/000000004.pt", weights_only=True)["net"]
    assert not any(".vision." in f".{name}" for name in saved)
    assert {"model.text.words.weight", "teachers.ema.copy.text.words.weight"} <= set(saved)


def test_a_run_with_frozen_parts_goes_on_from_a_checkpoint(
    squares: Dataset, recipe_of: Make, tmp_path: Path
) -> None:
    recipe = recipe_of(steps=4, objectives=OBJECTIVES, train=["text.*", "lm_head.*"], checkpoint_every=2)
    calm = run_gather(recipe, [squares], tmp_path / "calm")
    folder = tmp_path / "again/work/checkpoints"
    folder.mkdir(parents=True)
    (folder / "000000002.pt").write_bytes((tmp_path / "calm/work/checkpoints/000000002.pt").read_bytes())
    again = run_gather(recipe, [squares], tmp_path / "again")
    assert again.table.equals(calm.table)
    weights = [(got.artifacts / "model.safetensors").read_bytes() for got in (calm, again)]
    assert weights[0] == weights[1]


def test_groups_have_their_rates_along_the_schedule(
    squares: Dataset, recipe_of: Make, tmp_path: Path
) -> None:
    groups = [
        ParameterGroup(match=["vision.*"], lr=1e-4),
        ParameterGroup(match=["text.*"], optimiser="sgd", lr=1e-12),
    ]
    common = {"steps": 3, "objectives": OBJECTIVES, "lr": 1e-3, "weight_decay": 0.0}
    recipe = recipe_of(**common, groups=groups)
    run = prepare(recipe, [squares])
    assert sorted({group["lr_scale"] for group in run.optimiser.param_groups}) == pytest.approx(
        [1e-9, 0.1, 1.0]
    )
    before = {name: value.clone() for name, value in run.net.model.state_dict().items()}
    after = load_file(run_gather(recipe, [squares], tmp_path / "run").artifacts / "model.safetensors")

    def change(part: str) -> float:
        return max(float((after[n] - before[n]).abs().max()) for n in after if n.startswith(part))

    assert change("vision_proj.") > 5e-4  # AdamW moves by about the rate in each step
    assert 5e-5 < change("vision.") < 5e-4
    assert change("text.") < 1e-9


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"groups": [ParameterGroup(match=["x.*"])]}, r"groups: no parameter of the model matches 'x\.\*'"),
        ({"freeze": ["vision.*", "visionary"]}, "freeze: no parameter of the model matches 'visionary'"),
    ],
)
def test_a_glob_that_matches_nothing_is_found_before_the_run(
    recipe_of: Make, more: dict[str, object], error: str
) -> None:
    (found,) = recipe_of(objectives=OBJECTIVES, **more).preflight()
    with pytest.raises(AssertionError, match=error):
        raise AssertionError(found)


def test_parts_of_another_model(squares: Dataset, recipe_of: Make, tmp_path: Path) -> None:
    first = run_gather(recipe_of(steps=2, seed=1, objectives=OBJECTIVES), [squares], tmp_path / "first")
    source = Weights(path=str(first.artifacts))
    recipe = recipe_of(objectives=OBJECTIVES, init_parts=[InitPart(weights=source, part="vision")])
    assert recipe.preflight() == []
    ours, theirs = (
        prepare(recipe, [squares]).net.model.state_dict(),
        load_file(first.artifacts / "model.safetensors"),
    )
    equal = {name for name, value in theirs.items() if torch.equal(value, ours[name])}
    assert {name for name in theirs if name.startswith("vision.")} <= equal
    assert "text.words.weight" not in equal
    for part, into, error in (
        ("visio", None, r"init_parts: the source has no module 'visio'; it has vision, text, vision_proj"),
        ("vision", "eyes", r"init_parts: the model has no module 'eyes'"),
        ("text", "vision", r"init_parts: text into vision: the weights do not fit: \d+ missing"),
    ):
        wrong = recipe_of(objectives=OBJECTIVES, init_parts=[InitPart(weights=source, part=part, into=into)])
        with pytest.raises(ValueError, match=error):
            prepare(wrong, [squares])
    both = recipe_of(objectives=OBJECTIVES, init=source, init_parts=[InitPart(weights=source)])
    assert "init_parts are for a new model" in both.preflight()[0]
