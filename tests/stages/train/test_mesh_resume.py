"""A run on a mesh, killed at a step and resumed on the same and on other workers and meshes: the same losses."""

from __future__ import annotations

import json
import pickle
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.ranks import run
from vlpipe.models.folder import load
from vlpipe.models.parallel.mesh import Mesh
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.stage import Dataset
from vlpipe.stages.train.checkpoint import Checkpoints
from vlpipe.stages.train.fit import resume
from vlpipe.stages.train.run import prepare
from vlpipe.stages.train.train import Train

HERE = Path(__file__).parent
STEPS = 9
ITC = {"use": "itc:Itc", "queue_size": 40, "alpha_ramp_epochs": 0}
# without dropout and draws, which are a worker's own; log_every is no divisor of checkpoint_every
WHAT: dict[str, Any] = {
    "steps": STEPS,
    "batch_size": 8,
    "checkpoint_every": 2,
    "log_every": 3,
    "objectives": [ITC, "lm:Lm"],
    "model": {"dropout": 0.0},
}


def in_ranks(
    folder: Path, num: int, jobs: Sequence[tuple[Train, Dataset, Path]], kill_at: int | None = None
) -> None:
    """Trains each recipe in its folder of work, in `num` processes; the last of them may be killed after a step."""
    configs = [{"recipe": recipe, "inputs": (data,), "work": str(work)} for recipe, data, work in jobs]
    (folder / "jobs").write_bytes(pickle.dumps(configs))
    last = num - 1
    killing = {} if kill_at is None else {"of_rank": {last: {"KILL_AT": str(kill_at)}}, "killed": last}
    run(folder, num, [HERE / "resume_worker.py", folder / "jobs"], wait_s=500, **killing)


def losses(work: Path) -> dict[tuple[int, str], float]:
    return {
        (step, name): value for step, name, value in json.loads((work / "result/losses.json").read_text())
    }


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_and_resumed_on_any_mesh_the_losses_are_the_same(
    tmp_path: Path, squares: Dataset, recipe_of: Callable[..., Train]
) -> None:
    """Two workers with shards are killed; then go on two with shards, two with replicas, one, and four as 2 x 2.

    On the same workers and mesh the bytes are the same; on others losses to 1e-4 of themselves, weights to 1e-3.
    """
    sharded = recipe_of(num_workers=2, mesh=Mesh(shard=2), **WHAT)
    others = {
        "same": sharded,
        "replicas": replace(sharded, mesh=Mesh(data=2)),
        "none": replace(sharded, mesh=None),
        "one": replace(sharded, num_workers=1, mesh=None),
        "four": replace(sharded, num_workers=4, mesh=Mesh(data=2, shard=2, zero=2)),
    }
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    in_ranks(tmp_path, 2, [(sharded, squares, whole)])
    at = random.Random(19).randint(3, STEPS - 1)
    in_ranks(tmp_path, 2, [(sharded, squares, killed)], kill_at=at)
    finished = sorted(path.parent.name for path in killed.glob("checkpoints/*/.metadata"))
    assert finished
    assert int(finished[-1]) <= at
    works = {name: tmp_path / f"resumed {name}" for name in others}
    for work in works.values():
        shutil.copytree(killed, work)
        (work / "checkpoints/000000099").mkdir()  # one that was never finished
    by_size: dict[int, list[tuple[Train, Dataset, Path]]] = {}
    for name, recipe in others.items():
        by_size.setdefault(recipe.num_workers, []).append((recipe, squares, works[name]))
    for num, jobs in by_size.items():
        in_ranks(tmp_path, num, jobs)
    wanted, weights = losses(whole), load_file(whole / "result/model.safetensors")
    assert {step for step, _ in wanted} == {3, 6, 9}
    for name, work in works.items():
        assert losses(work) == (wanted if name == "same" else pytest.approx(wanted, rel=1e-4, abs=1e-6)), name
        found = load_file(work / "result/model.safetensors")
        for key, value in weights.items():
            close = {"rtol": 0.0, "atol": 0.0} if name == "same" else {"rtol": 1e-3, "atol": 1e-4}
            torch.testing.assert_close(found[key], value, **close, msg=f"{name} {key}")
    assert sorted(path.name for path in (works["same"] / "checkpoints").iterdir()) == [
        "000000008",
        "000000009",
    ]
    load(works["four"] / "result")  # one plain folder

    # damage is said by name
    (broken,) = (works["four"] / "checkpoints").glob("*9/__1_0.distcp")
    broken.unlink()
    with pytest.raises(VlpipeError, match=r"checkpoint .*000000009 cannot be read"):
        resume(prepare(others["one"], [squares]), Checkpoints(str(broken.parents[1])))


def test_one_worker_goes_on_with_the_rows_of_two(squares: Dataset, recipe_of: Callable[..., Train]) -> None:
    """Step by step, the samples are those that the workers of the beginning would have, in their order."""
    run = prepare(recipe_of(batch_size=12, accumulate=1), [squares])

    def rows(world: int, streams: int, step: int) -> list[list[int]]:
        found = []
        for rank in range(world):
            with run.loader.batches(step, rank, world, streams=streams) as batches:
                found.append([next(batches).stream("text").data.tolist() for _ in range(6)])
        return [[row for own in micro for row in own] for micro in zip(*found, strict=True)]

    for step in (0, 3):
        two = rows(2, 2, step)
        assert rows(1, 2, step) == two
        assert rows(3, 2, step) == two
        assert rows(4, 2, step) == two
        assert rows(1, 1, step) != two
    mixed = prepare(recipe_of(group_by_length=True, balance_tokens=False), [squares])
    object.__setattr__(mixed.recipe, "balance_tokens", True)
    with (
        pytest.raises(VlpipeError, match="a step has the rows of 2 workers"),
        mixed.loader.batches(0, streams=2),
    ):
        pass
