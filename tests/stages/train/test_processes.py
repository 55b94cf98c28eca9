"""`processes`: a run goes on with other workers than `num_workers`, under the same key, with the same losses."""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from tests.stages.train.test_killed import end_well, start, wait_until
from tests.stages.train.test_mesh import experts
from tests.stages.train.test_mesh_resume import in_ranks, losses
from vlpipe.models.parallel.mesh import Mesh
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.stage import Dataset
from vlpipe.stages.common.row import IMAGE_FIELDS, LISTED
from vlpipe.stages.train.fit import fit
from vlpipe.stages.train.run import prepare
from vlpipe.stages.train.train import Train

Make = Callable[..., Train]
ITC = {"use": "itc:Itc", "queue_size": 48, "alpha_ramp_epochs": 0}
STEPS = 8
# without dropout and draws, which are a worker's own
WHAT: dict[str, Any] = {"steps": STEPS, "batch_size": 24, "checkpoint_every": 2, "num_workers": 2}
CONTRAST: dict[str, Any] = {**WHAT, "objectives": [ITC, "lm:Lm"], "model": {"dropout": 0.0}}
WORKFLOW = """
name: spread
steps:
  squares: {{use: "gated:Rows", file: "{folder}/rows.parquet", shard_rows: 20}}
  train:
    use: "train.train:Train"
    from: squares
    model: {{use: "blip:Blip", image_size: 16, patch_size: 8, vision_width: 32, vision_layers: 1, vision_heads: 2,
             text_width: 32, text_layers: 1, text_heads: 2, max_text_length: 16, embed_dim: 16, position: sincos,
             dropout: 0.0}}
    tokenizer: "{folder}/vocabulary"
    objectives: [{{use: "itc:Itc", queue_size: 48}}, "lm:Lm"]
    teachers: {{ema: {{momentum: 0.995}}}}
    streams: {{text: {{max_length: 12}}}}
    batch_size: 16
    num_workers: 2
    steps: 40
    lr: 1.0e-3
    log_every: 5
    checkpoint_every: 2
    loader_threads: 1
"""


def rows(recipe: Train, data: Dataset, ranks: int, step: int = 1) -> list[list[list[str]]]:
    """Of each rank the ids of the texts of its micro-batches, in two steps from `step` on."""
    loader, found = prepare(recipe, [data]).loader, []
    for rank in range(ranks):
        with loader.batches(step, rank, ranks, streams=recipe.num_workers) as batches:
            micro = [next(batches) for _ in range(2 * recipe.micro_batches)]
        assert [b.step.micro for b in micro] == [*range(recipe.micro_batches)] * 2
        assert [b.step.number for b in micro] == [
            n for n in (step, step + 1) for _ in range(recipe.micro_batches)
        ]
        found.append([[str(row) for row in b.stream("image").data.flatten(1).sum(1).tolist()] for b in micro])
    return found


def test_processes_share_the_micro_batches_of_all_workers(squares: Dataset, recipe_of: Make) -> None:
    """Two or one process of four workers pass the same rows forward together as the four, each worker's in its order."""
    four = recipe_of(num_workers=4, batch_size=24, accumulate=2, objectives=["lm:Lm"], teachers={})
    each = rows(four, squares, 4)
    whole = sorted(row for rank in each for micro in rank[:2] for row in micro)
    assert len(set(whole)) > 12
    for processes, num in ((2, 4), (1, 8)):
        recipe = replace(four, processes=processes)
        assert (recipe.micro_batches, recipe.keeps_micro_batches, recipe.problems()) == (num, True, [])
        own = 4 // processes
        assert rows(recipe, squares, processes) == [
            [
                each[rank][2 * step + m]
                for step in range(2)
                for rank in range(p * own, (p + 1) * own)
                for m in range(2)
            ]
            for p in range(processes)
        ]
    # three have a third of the step each, and eight one micro-batch instead of two
    three, eight = replace(four, processes=3), replace(four, processes=8)
    assert (three.micro_batches, three.keeps_micro_batches) == (2, False)
    assert (eight.micro_batches, eight.keeps_micro_batches) == (1, True)
    for recipe in (three, eight):
        assert recipe.problems() == []
        found = rows(recipe, squares, recipe.num_processes)
        assert {len(micro) for rank in found for micro in rank} == {
            24 // recipe.num_processes // recipe.micro_batches
        }
        assert sorted(r for rank in found for micro in rank[: recipe.micro_batches] for r in micro) == whole


def test_a_plan_says_which_processes_do_not_go(squares: Dataset, recipe_of: Make) -> None:
    itm = recipe_of(num_workers=4)
    assert replace(itm, processes=2).preflight() == []
    assert replace(itm, processes=1, mesh=Mesh()).preflight() == []
    (problem,) = replace(itm, processes=8, batch_size=16).preflight()
    assert problem == (
        "processes: the loss of Itm is of the rows that pass forward together, 4 with num_workers: 4 and 2 now; use a "
        "number of processes that divides num_workers x accumulate = 4"
    )
    (problem,) = replace(experts(itm, experts=2), processes=3, batch_size=24).preflight()
    assert problem.startswith(
        "processes: what model.layers.1.experts drops depends on the rows that pass forward"
    )
    assert "6 with num_workers: 4 and 8 now" in problem
    assert replace(itm, processes=0).problems() == ["processes must be at least 1, got 0"]
    (problem,) = replace(itm, processes=3).problems()
    assert problem == "processes: batch_size must be a multiple of 3 x 1 micro-batches, got 16"
    (problem,) = replace(itm, processes=2, mesh=Mesh(shard=4)).problems()
    assert "must be processes = 2" in problem
    (problem,) = replace(itm, processes=2, group_by_length=True, balance_tokens=True).problems()
    assert problem.endswith("as many processes as num_workers must read rows; got 2 and 4")


def test_a_plan_says_with_which_fewer_processes_a_run_does_not_go_on(recipe_of: Make) -> None:
    four = recipe_of(num_workers=4, batch_size=24, objectives=["lm:Lm"], teachers={})
    assert replace(four, least_processes=1).preflight() == []
    assert [fewer.processes for fewer in replace(four, least_processes=2).fewer()] == [2, 3]
    (problem,) = replace(four, least_processes=5).problems()
    assert problem == "least_processes: from 1 to 4, the number of processes, got 5"
    (problem,) = replace(four, least_processes=2, mesh=Mesh(shard=2)).problems()
    assert problem.startswith("least_processes: 2: with 3 processes: mesh: data 1 x shard 2")
    (problem,) = replace(four, least_processes=3, batch_size=16).problems()
    assert problem.endswith(
        "with 3 processes: processes: batch_size must be a multiple of 3 x 1 micro-batches, got 16"
    )
    (problem,) = replace(four, least_processes=3, objectives=["lm:Lm", "itm:Itm"]).preflight()
    assert (
        "the loss of Itm is of the rows that pass forward together, 6 with num_workers: 4 and 8 now"
        in problem
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_without_a_mesh_it_goes_on_with_any(tmp_path: Path, squares: Dataset, recipe_of: Make) -> None:
    """Two replicas are killed; then go on one process, three, two and four with shards: losses to 1e-4, weights to 1e-3.

    On the two as before the bytes are the same.
    """
    two = recipe_of(**CONTRAST)
    others = {
        "same": two,
        "one": replace(two, processes=1),
        "shard": replace(two, mesh=Mesh(shard=2)),
        "three": replace(two, processes=3),  # a third of a step's rows is no worker's
        "four": replace(two, processes=4, mesh=Mesh(data=2, shard=2, zero=2)),
    }
    killed, whole = whole_and_killed(tmp_path, squares, two)
    all_as(whole, {name: (recipe, killed) for name, recipe in others.items()}, squares)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_pipeline_goes_on_with_any_mesh(tmp_path: Path, squares: Dataset, recipe_of: Make) -> None:
    """And a run without a mesh as a pipeline."""
    model = {"use": "gpt:Gpt", "layers": 4, "dropout": 0.0, "width": 16, "heads": 2, "max_text_length": 16}
    more = {"teachers": {}, "objectives": ["lm:Lm"], "accumulate": 2, "mesh": Mesh(pipeline=2)}
    two = replace(recipe_of(**WHAT), model=model, **more)
    others = {
        "same": two,
        "one": replace(two, processes=1, mesh=None),
        "shard": replace(two, mesh=Mesh(shard=2)),
        "four": replace(two, processes=4, mesh=Mesh(pipeline=2)),
        "longer": replace(two, processes=4, mesh=Mesh(pipeline=4)),
    }
    killed, whole = whole_and_killed(tmp_path, squares, two)
    plain = tmp_path / "plain"
    in_processes(squares, {plain: others["one"]})
    shutil.rmtree(plain / "result")
    (plain / "checkpoints/000000008.pt").unlink()
    jobs = {name: (recipe, killed) for name, recipe in others.items()}
    all_as(whole, {**jobs, "of a run without a mesh": (two, plain)}, squares)


def whole_and_killed(folder: Path, data: Dataset, recipe: Train) -> tuple[Path, Path]:
    """Returns the folders of a run that was killed at a random step from 3 on, and of an undisturbed one."""
    whole, killed = folder / "whole", folder / "killed"
    in_processes(data, {whole: recipe})
    in_processes(data, {killed: recipe}, kill_at=random.Random(19).randint(3, STEPS - 1))
    assert not (killed / "result").exists()
    return killed, whole


def in_processes(data: Dataset, recipes: dict[Path, Train], kill_at: int | None = None) -> None:
    for num in {recipe.num_processes for recipe in recipes.values()}:
        jobs = [(recipe, data, work) for work, recipe in recipes.items() if recipe.num_processes == num]
        for _, _, work in jobs:
            work.mkdir(exist_ok=True)
        if num > 1:
            in_ranks(jobs[0][2].parent, num, jobs, kill_at)
        else:
            for recipe, _, work in jobs:
                fit({"recipe": recipe, "inputs": (data,), "work": str(work)})


def all_as(whole: Path, others: dict[str, tuple[Train, Path]], data: Dataset) -> None:
    """The runs that go on from a copy of another's folder end as `whole` did."""
    works = {}
    for name, (recipe, of) in others.items():
        assert recipe.problems() == [], name
        works[name] = shutil.copytree(of, whole.with_name(f"resumed {name}"))
    in_processes(data, {works[name]: recipe for name, (recipe, _) in others.items()})
    wanted, weights = losses(whole), load_file(whole / "result/model.safetensors")
    assert {step for step, _ in wanted} == set(range(1, STEPS + 1))
    for name, work in works.items():
        assert losses(work) == (wanted if name == "same" else pytest.approx(wanted, rel=1e-4, abs=1e-6)), name
        found = load_file(work / "result/model.safetensors")
        for key, value in weights.items():
            close = {"rtol": 0.0, "atol": 0.0} if name == "same" else {"rtol": 1e-3, "atol": 1e-4}
            torch.testing.assert_close(found[key], value, **close, msg=f"{name} {key}")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_run_goes_on_from_the_command_line_with_fewer_processes(
    tmp_path: Path, make_rows: Callable[[], list[dict[str, Any]]]
) -> None:
    """Two workers of Ray are killed with their driver; one process takes the step up, by `--set`, under its key."""
    rows = make_rows()
    pq.write_table(pa.Table.from_pylist(rows, pa.schema([*LISTED, *IMAGE_FIELDS])), tmp_path / "rows.parquet")
    Tokenizer.train([row["texts"][0]["text"] for row in rows], vocab_size=100).save(tmp_path / "vocabulary")
    (tmp_path / "w.yaml").write_text(WORKFLOW.format(folder=tmp_path))
    one = ("--local", "--set", "train.processes=1")
    end_well(start(tmp_path / "w.yaml", tmp_path / "whole", *one))
    root = tmp_path / "root"
    first = start(tmp_path / "w.yaml", root)
    wait_until(lambda: list(root.glob("train-*/work/*/checkpoints/*.pt")), first)
    first.send_signal(signal.SIGKILL)
    first.wait()
    (began,) = root.glob("train-*")
    assert not (began / "000000.parquet").exists()
    end_well(start(tmp_path / "w.yaml", root, *one))
    assert list(root.glob("train-*")) == [began]
    found, wanted = (
        pq.read_table(r / began.name / "000000.parquet").to_pylist() for r in (root, tmp_path / "whole")
    )
    assert [(row["step"], row["name"]) for row in found] == [(row["step"], row["name"]) for row in wanted]
    assert [row["value"] for row in found] == pytest.approx(
        [row["value"] for row in wanted], rel=1e-4, abs=1e-6
    )
