"""A run is killed on one mesh and goes on with another kind of it: cut layers, shards, experts, a pipeline, replicas."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.stages.train.test_mesh import experts
from tests.stages.train.test_processes import CONTRAST, STEPS, WHAT, all_as, in_processes, whole_and_killed
from vlpipe.models.parallel.mesh import Mesh
from vlpipe.pipeline.stage import Dataset
from vlpipe.stages.train.train import Train

Make = Callable[..., Train]
# AdamW makes steps of the noise where a gradient is 0; the momentum is a state that a checkpoint has to bring
SGD: dict[str, Any] = {"optimiser": "sgd", "momentum": 0.9, "lr": 0.01}
GPT: dict[str, Any] = {"use": "gpt:Gpt", "layers": 4, "dropout": 0.0, "width": 16, "heads": 2}


def killed_as(folder: Path, data: Dataset, recipes: dict[str, Train]) -> dict[str, Path]:
    """Returns the folders of runs that are killed at a random step from 3 on."""
    steps = random.Random(7)
    for name, recipe in recipes.items():
        in_processes(data, {folder / name: recipe}, kill_at=steps.randint(3, STEPS - 1))
    return {name: folder / name for name in recipes}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_cut_layers_are_joined_and_whole_ones_cut(tmp_path: Path, squares: Dataset, recipe_of: Make) -> None:
    """BLIP with a teacher and a queue: from `tensor` to one process, replicas, shards, and to four as 2 x 2, and back."""
    data = replace(recipe_of(**CONTRAST), **SGD)
    tensor, shard = replace(data, mesh=Mesh(tensor=2)), replace(data, mesh=Mesh(shard=2, zero=2))
    four = replace(data, processes=4, mesh=Mesh(shard=2, tensor=2))
    killed, whole = whole_and_killed(tmp_path, squares, tensor)
    of = killed_as(tmp_path, squares, {"data": data, "shard": shard, "four": four})
    all_as(
        whole,
        {
            "same": (tensor, killed),
            "one": (replace(data, processes=1), killed),
            "replicas": (data, killed),
            "shards": (shard, killed),
            "four from two": (four, killed),
            "two from four": (tensor, of["four"]),
            "replicas from four": (data, of["four"]),
            "from replicas": (tensor, of["data"]),
            "four from replicas": (four, of["data"]),
            "from shards": (tensor, of["shard"]),
        },
        squares,
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_pipeline_goes_on_with_cut_layers_and_shards(
    tmp_path: Path, squares: Dataset, recipe_of: Make
) -> None:
    """And either as a pipeline, which has other moments on other workers."""
    more = {"teachers": {}, "objectives": ["lm:Lm"], "accumulate": 2, "model": {**GPT, "max_text_length": 16}}
    pipeline = replace(recipe_of(**WHAT), **SGD, **more, mesh=Mesh(pipeline=2))
    tensor, shard = (replace(pipeline, mesh=mesh) for mesh in (Mesh(tensor=2), Mesh(shard=2)))
    killed, whole = whole_and_killed(tmp_path, squares, pipeline)
    of = killed_as(tmp_path, squares, {"tensor": tensor, "shard": shard})
    all_as(
        whole,
        {
            "same": (pipeline, killed),
            "cut": (tensor, killed),
            "from cut": (pipeline, of["tensor"]),
            "from shards": (pipeline, of["shard"]),
            "four from cut": (replace(pipeline, processes=4, mesh=Mesh(pipeline=2)), of["tensor"]),
        },
        squares,
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_spread_experts_go_on_together_and_as_a_pipeline(
    tmp_path: Path, squares: Dataset, recipe_of: Make
) -> None:
    """From replicas to experts over two workers, with shards, to four, to one, to a pipeline, and back."""
    data = experts(recipe_of(**WHAT), layers=4)
    data = replace(data, momentum=0.9, accumulate=2)
    spread, shard = (replace(data, mesh=mesh) for mesh in (Mesh(expert=2), Mesh(expert=2, shard=2)))
    pipeline = replace(data, mesh=Mesh(pipeline=2))
    killed, whole = whole_and_killed(tmp_path, squares, spread)
    of = killed_as(tmp_path, squares, {"data": data, "shard": shard, "pipeline": pipeline})
    all_as(
        whole,
        {
            "same": (spread, killed),
            "one": (replace(data, processes=1), killed),
            "replicas": (data, killed),
            "shards": (shard, killed),
            "pipeline": (pipeline, killed),
            "four": (replace(data, processes=4, mesh=Mesh(expert=4, shard=2)), killed),
            "from replicas": (spread, of["data"]),
            "from shards": (spread, of["shard"]),
            "from a pipeline": (shard, of["pipeline"]),
        },
        squares,
    )
