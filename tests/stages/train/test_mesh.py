"""Training on meshes of two and four processes over gloo against one process with the whole batch."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from tests.ranks import run
from vlpipe.models.optim.parameter_group import ParameterGroup
from vlpipe.models.parallel.mesh import Mesh
from vlpipe.models.parallel.tensor import tensor_problem
from vlpipe.pipeline.stage import Dataset
from vlpipe.stages.train.train import Train

HERE = Path(__file__).parent
Make = Callable[..., Train]
ZERO: tuple[Literal[1, 2, 3], ...] = (1, 2, 3)
ITC = {"use": "itc:Itc", "queue_size": 64, "alpha_ramp_epochs": 0}
# a step is the whole set, so that all see the same rows; ITM draws negatives, and ranks draw their own
EXACT: dict[str, Any] = {"batch_size": 48, "objectives": [ITC, "lm:Lm"], "model": {"dropout": 0.0}}


def in_ranks(folder: Path, num: int, jobs: Mapping[str, tuple[Train, Dataset]]) -> dict[str, Any]:
    """Returns what `mesh_worker.trained` returns for each job in `num` processes."""
    (folder / "jobs").write_bytes(pickle.dumps(dict(jobs)))
    run(folder, num, [HERE / "mesh_worker.py", folder / "jobs", folder])
    found: dict[str, Any] = torch.load(folder / "found.pt")
    return found


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """That of `mesh_worker.py`."""
    monkeypatch.syspath_prepend(str(HERE))
    import mesh_worker

    found: Callable[..., dict[str, Any]] = mesh_worker.trained
    return found


def same(found: Mapping[str, Any], one: Mapping[str, Any]) -> None:
    """Losses to 1e-4 of themselves over three steps, and gradients of the third to 1e-3, or 1e-5 of the largest one."""
    for step, (many, single) in enumerate(zip(found["losses"], one["losses"], strict=True)):
        assert many == pytest.approx(single, rel=1e-4, abs=1e-6), step
    assert found["grads"].keys() == one["grads"].keys()
    largest = max(float(grad.abs().max()) for grad in one["grads"].values())
    for name, grad in one["grads"].items():
        torch.testing.assert_close(found["grads"][name], grad, rtol=1e-3, atol=1e-5 * largest, msg=name)
    assert found["state"].keys() == one["state"].keys()
    for name, value in one["state"].items():
        torch.testing.assert_close(found["state"][name], value, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_shards_are_one_process(
    tmp_path: Path, squares: Dataset, recipe_of: Make, trained: Callable[..., dict[str, Any]]
) -> None:
    """Replicas, ZeRO 1 to 3 and cut layers, alone and in pairs; each with features of all workers and their gradients, a
    teacher, a queue and frozen parts; with a gradient cache, recomputed layers, LARS."""
    frozen: dict[str, Any] = {"freeze": ["vision.*", "text.embed.*"], "recompute": True}
    # of other sums: AdamW makes steps of the noise where a gradient is 0, such as that of the keys' biases
    plain_steps: dict[str, Any] = {"optimiser": "sgd", "lr": 0.01}
    kinds: dict[str, dict[str, Any]] = {
        "": {},
        "cached": {"accumulate": 2},
        "frozen": frozen,
        "lars": {"groups": [ParameterGroup(match=["vision.*"], optimiser="lars")]},
        "sgd": plain_steps,
        "sgd-cached": {**plain_steps, "accumulate": 2},
        "sgd-frozen": {**plain_steps, **frozen},
    }
    meshes: dict[int, list[tuple[str, Mesh | None]]] = {
        2: [
            *((kind, None) for kind in ("", "cached", "frozen", "lars")),  # DistributedDataParallel
            *((kind, Mesh(shard=2, zero=zero)) for kind in ("", "cached", "frozen") for zero in ZERO),
            ("lars", Mesh(shard=2)),
            *((kind, Mesh(tensor=2)) for kind in ("sgd", "sgd-frozen")),
        ],
        4: [
            ("", Mesh(data=2, shard=2)),
            ("cached", Mesh(data=2, shard=2, zero=1)),
            ("frozen", Mesh(data=2, shard=2, zero=2)),
            *(("sgd-frozen", Mesh(tensor=2, shard=2, zero=zero)) for zero in ZERO),
            ("sgd-cached", Mesh(tensor=2, shard=2)),
            *((kind, Mesh(tensor=2, data=2)) for kind in ("sgd-cached", "sgd-frozen")),
        ],
    }
    ones = {kind: trained(recipe_of(**EXACT, **more), squares) for kind, more in kinds.items()}
    for num, wanted in meshes.items():
        folder = tmp_path / str(num)
        folder.mkdir()
        jobs = {
            f"{kind} {mesh}": (recipe_of(num_workers=num, mesh=mesh, **EXACT, **kinds[kind]), squares)
            for kind, mesh in wanted
        }
        assert [recipe.preflight() for recipe, _ in jobs.values()] == [[]] * len(wanted)
        found = in_ranks(folder, num, jobs)
        assert len(found) == len(wanted)
        for name, one in found.items():
            same(one, ones[name.split(" ")[0]])


def experts(recipe: Train, **more: Any) -> Train:
    """A language model with 4 experts, which have room for all tokens, so that ranks drop none."""
    router = {"kind": "switch", "jitter": 0.0}
    sizes = {
        "experts": 4,
        "width": 16,
        "layers": 2,
        "heads": 2,
        "max_text_length": 16,
        "capacity_factor": [4.0, 4.0],
    }
    return replace(
        recipe,
        model={"use": "expert_lm:ExpertLm", "router": router, **sizes, **more},
        objectives=["lm:Lm"],
        teachers={},
        optimiser="sgd",
        lr=0.1,
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_spread_experts_are_one_process(
    tmp_path: Path, squares: Dataset, recipe_of: Make, trained: Callable[..., dict[str, Any]]
) -> None:
    """On two workers with replicas or shards; on four in two groups, or all in one with shards; with a teacher, and frozen
    parts. The model has no features to compare, so no contrast and no queue."""
    kinds: dict[str, dict[str, Any]] = {
        "": {},
        "frozen": {"freeze": ["words.*", "layers.0.*"], "teachers": {"ema": {"momentum": 0.9}}},
    }
    meshes = {
        2: [*(Mesh(expert=2, shard=2, zero=zero) for zero in ZERO), Mesh(expert=2)],
        4: [Mesh(expert=2), Mesh(expert=4, shard=2)],
    }

    def recipe(kind: str, **more: Any) -> Train:
        return replace(experts(recipe_of(batch_size=48, **more)), **kinds[kind])

    ones = {kind: trained(recipe(kind), squares) for kind in kinds}
    for num, wanted in meshes.items():
        folder = tmp_path / str(num)
        folder.mkdir()
        jobs = {
            f"{kind} {mesh}": (recipe(kind, num_workers=num, mesh=mesh), squares)
            for kind in kinds
            for mesh in wanted
        }
        assert [one.preflight() for one, _ in jobs.values()] == [[]] * len(jobs)
        for name, found in in_ranks(folder, num, jobs).items():
            same(found, ones[name.split(" ")[0]])


def test_a_plan_refuses_experts_that_cannot_be_spread(recipe_of: Make) -> None:
    two = recipe_of(num_workers=2, mesh=Mesh(expert=2))
    assert two.preflight() == ["mesh: expert: the model has no layer of experts; remove `expert`"]
    assert experts(two).preflight() == []
    (problem,) = experts(two, experts=3).preflight()
    assert problem == "mesh: expert: model.layers.1.experts has 3 experts, which 2 workers cannot divide"


def test_a_plan_refuses_what_cannot_be_cut(recipe_of: Make) -> None:
    """Heads, and models without a layer that is cut."""
    (problem,) = recipe_of(num_workers=4, batch_size=48, mesh=Mesh(tensor=4)).preflight()
    assert problem == "mesh: model.vision.blocks.0 has 2 heads, which 4 `tensor` workers cannot divide"
    net = torch.nn.Sequential(torch.nn.Linear(4, 4))
    assert (tensor_problem(net, 2) or "").startswith(
        "mesh: the model has no layer that `tensor` cuts: PreNormLayer, "
    )
    assert recipe_of(num_workers=2, mesh=Mesh(tensor=2)).preflight() == []
    assert "GB of weights, gradients and moments per worker (ZeRO-3)" in recipe_of(
        num_workers=2, mesh=Mesh(shard=2)
    ).estimate(0)


@pytest.mark.parametrize(
    ("mesh", "more", "message"),
    [
        ({"shard": 3}, {"num_workers": 4}, "data 1 x shard 3 x tensor 1 must be num_workers = 4"),
        ({"data": 2, "shard": 2}, {"num_workers": 2}, "data 2 x shard 2 x tensor 1 must be num_workers = 2"),
        ({"shard": 0}, {}, "sizes must be at least 1, got shard 0"),
        ({"zero": 1}, {}, "`shard` workers, of which there is 1; set shard"),
        ({"half": True}, {}, "of which there is 1; set shard"),
        (
            {"shard": 2, "half": True},
            {"num_workers": 2, "precision": "fp32"},
            "halves nothing with precision: fp32",
        ),
        ({"shard": 2}, {"num_workers": 2, "precision": "fp16"}, "set bf16 or fp32"),
        ({"expert": 3}, {"num_workers": 2}, "expert: 3 must divide data x shard = 2"),
        ({"expert": 2, "tensor": 2}, {"num_workers": 4}, "expert does not go with tensor"),
        ({"tensor": 2}, {"num_workers": 2, "compile": True}, "compile: true does not go with `tensor`"),
        ({"shard": 2}, {"num_workers": 2, "find_unused_parameters": True}, "is for DistributedDataParallel"),
    ],
)
def test_senseless_meshes_are_refused_by_the_plan(
    mesh: dict[str, Any], more: dict[str, Any], message: str, recipe_of: Make
) -> None:
    (problem,) = recipe_of(mesh=Mesh(**mesh), **more).problems()
    assert problem.startswith("mesh: ")
    assert message in problem
