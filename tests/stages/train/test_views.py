"""Systems that compare two views of an image: what the loader draws, two ranks against one, micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.stages.train.test_ranks import in_processes
from vlpipe.pipeline.stage import Dataset
from vlpipe.pipeline.testing import run_gather
from vlpipe.stages.train.run import Run, prepare
from vlpipe.stages.train.train import Train

HERE = Path(__file__).parent
RESNET: dict[str, Any] = {
    "image_size": 16,
    "layers": [1, 1],
    "width": 4,
    "stem": "small",
    "projection_dim": 8,
}
VIT: dict[str, Any] = {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "heads": 2, "hidden": 12}
DISTORTION = {
    "crop_scale": [0.3, 1.0],
    "flip": True,
    "jitter": [0.8, 0.8, 0.8, 0.2],
    "jitter_rate": 0.8,
    "grey_rate": 0.2,
    "blur_rate": 0.5,
    "blur_kernel": 0.2,
}
VIEWS = {"image": {"augment": DISTORTION}, "second": {"augment": DISTORTION}}
MODELS: dict[str, dict[str, Any]] = {
    "simclr": {"model": {"use": "simclr:SimClr", **RESNET}, "objectives": ["images.nt_xent:NtXent"]},
    "moco": {
        "model": {"use": "moco:Moco", **RESNET},
        "objectives": [{"use": "images.moco:Moco", "queue_size": 40, "momentum": 0.9}],
    },
    "moco_v3": {
        "model": {"use": "moco_v3:MocoV3", **VIT},
        "objectives": ["images.moco:MocoV3"],
        "teachers": {"ema": {"use": "cosine_ema:CosineEma", "steps": 6, "momentum": 0.9}},
    },
}
# what is on one rank what the recipe is on two
ON_ONE_RANK: dict[str, dict[str, Any]] = {"moco": {"model": {**MODELS["moco"]["model"], "norm_parts": 2}}}


def recipe_of(name: str, **more: Any) -> Train:
    values = {"batch_size": 16, "steps": 6, "lr": 1e-3, "log_every": 1, "loader_threads": 1, "streams": VIEWS}
    return Train(**{**values, **MODELS[name], **more})


def batches_of(recipe: Train, squares: Dataset, num: int, step: int = 0) -> list[Any]:
    with prepare(recipe, [squares]).loader.batches(step) as batches:
        return list(islice(batches, num))


def pictures(batches: Sequence[Any], stream: str) -> torch.Tensor:
    return torch.cat([batch.stream(stream).data for batch in batches])


def test_views_are_drawn_from_seed_epoch_and_place(squares: Dataset) -> None:
    """A run that goes on at step 4, in the second epoch of 48 images, sees what an uninterrupted one does."""
    recipe = recipe_of("simclr")
    whole = batches_of(recipe, squares, 6)
    later = batches_of(recipe, squares, 2, step=4)
    for stream in ("image", "second"):
        assert torch.equal(pictures(whole[4:], stream), pictures(later, stream))
    assert torch.equal(whole[4].same, later[0].same)
    differ = (pictures(whole, "image") != pictures(whole, "second")).flatten(1).any(1)
    assert differ.all()
    for k in range(3):  # the same picture in two epochs
        rows = {int(same): at for at, same in enumerate(torch.cat([b.same for b in whole[3:]]).tolist())}
        first, second = pictures(whole[:3], "image"), pictures(whole[3:], "image")
        at = rows[int(whole[0].same[k])]
        assert not torch.equal(first[k], second[at])
    other = batches_of(replace(recipe, seed=1), squares, 3)
    assert set(torch.cat([b.same for b in other]).tolist()) == set(
        torch.cat([b.same for b in whole[:3]]).tolist()
    )
    assert not torch.equal(pictures(other, "image"), pictures(whole[:3], "image"))


@pytest.mark.parametrize("name", MODELS)
def test_it_trains_and_a_resumed_run_ends_with_the_same_bytes(
    name: str, squares: Dataset, tmp_path: Path
) -> None:
    recipe = recipe_of(name, checkpoint_every=2)
    assert recipe.preflight() == []
    one = run_gather(recipe, [squares], tmp_path / "one")
    again = tmp_path / "again"
    (again / "work").mkdir(parents=True)
    (tmp_path / "one/work/checkpoints").rename(again / "work/checkpoints")
    (last,) = (again / "work/checkpoints").glob("*6.pt")
    last.unlink()
    other = run_gather(recipe, [squares], again)
    weights = [(run.artifacts / "model.safetensors").read_bytes() for run in (one, other)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("name", MODELS)
def test_micro_batches_would_have_other_statistics(name: str) -> None:
    (problem,) = recipe_of(name, accumulate=2).preflight()
    assert "is a batch norm, whose statistics are of the rows forwarded together" in problem


@pytest.fixture
def second_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[Run], dict[str, Any]]:
    """That of `worker.py`."""
    monkeypatch.syspath_prepend(str(HERE))
    import worker

    return worker.second_step


@pytest.mark.slow
def test_two_ranks_are_one(
    tmp_path: Path, squares: Dataset, second_step: Callable[[Run], dict[str, Any]]
) -> None:
    """Losses and gradients of the second step, when queues have keys; a step is the whole set of 48."""
    jobs = [("gradients", recipe_of(name, batch_size=48, num_workers=2), squares) for name in MODELS]
    folders = in_processes(tmp_path, 2, jobs)
    for name, folder in zip(MODELS, folders, strict=True):
        alone = recipe_of(name, batch_size=48, **ON_ONE_RANK.get(name, {}))
        one = second_step(prepare(alone, [squares]))
        ranks = [torch.load(folder / f"gradients{rank}.pt") for rank in range(2)]
        for rank in ranks:
            assert rank["grads"].keys() == one["grads"].keys()
            for parameter, grad in one["grads"].items():
                size = float(grad.norm())
                assert float((rank["grads"][parameter] - grad).norm()) <= 1e-4 * size + 1e-7, (
                    name,
                    parameter,
                )
        for value in one["values"]:
            mean = sum(float(rank["values"][value]) for rank in ranks) / 2
            assert mean == pytest.approx(float(one["values"][value]), rel=1e-5), (name, value)
