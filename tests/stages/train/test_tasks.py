"""Tasks: one per optimiser step, the same for all micro-batches, ranks and after a resume; its streams, views and losses."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.files import File
from vlpipe.pipeline.stage import Dataset
from vlpipe.pipeline.testing import run_gather
from vlpipe.stages.train import fit as fit_module
from vlpipe.stages.train.fit import train_step
from vlpipe.stages.train.recipe import Task
from vlpipe.stages.train.run import prepare
from vlpipe.stages.train.train import Train

SIZES: dict[str, Any] = {
    "use": "vilt:Vilt",
    "image_size": 16,
    "patch_size": 8,
    "width": 16,
    "layers": 1,
    "heads": 2,
    "max_text_length": 16,
}
VIEWS: dict[str, Any] = {"words": ["mask_text:MaskText"], "pairs": ["mismatch:Mismatch"]}
TASKS = {
    "mlm": Task(weight=3.0, objectives=["mlm"]),
    "itm": Task(objectives=["match", "word_region:WordRegion"], view="pairs"),
}


@pytest.fixture
def make(make_rows: Callable[[], list[dict[str, Any]]], tmp_path: Path) -> Callable[..., Train]:
    folder = tmp_path / "vocabulary"
    Tokenizer.train([row["texts"][0]["text"] for row in make_rows()], vocab_size=100).save(folder)

    def recipe(**more: Any) -> Train:
        objectives: list[Any] = [{"use": "masked_lm:MaskedLm", "view": "words"}, "match:Match"]
        objectives += [{"use": "word_region:WordRegion", "weight": 0.1}]
        values: dict[str, Any] = {"objectives": objectives, "views": VIEWS, "tasks": TASKS, "steps": 8}
        return Train(
            model=SIZES,
            tokenizer=File(path=str(folder)),
            batch_size=8,
            lr=1e-3,
            loader_threads=1,
            **{**values, **more},
        )

    return recipe


def test_each_step_runs_one_task_by_weight(make: Callable[..., Train]) -> None:
    recipe = make()
    drawn = Counter(recipe.task_of(step) for step in range(4000))
    assert 0.72 < drawn["mlm"] / 4000 < 0.78  # 3 of 4; the standard error is 0.007
    assert [recipe.task_of(step) for step in range(50)] != [make(seed=1).task_of(step) for step in range(50)]
    assert make(tasks={}).task_of(3) == ""


def test_micro_batches_and_ranks_share_the_task(make: Callable[..., Train], squares: Dataset) -> None:
    run = prepare(make(accumulate=2), [squares])
    found: dict[int, set[str]] = {}
    for rank in (0, 1):
        with run.loader.batches(2, rank, 2) as batches:
            for _ in range(12):
                batch = next(batches)
                found.setdefault(batch.step.number, set()).add(batch.task)
                assert list(batch.views) == (["words"] if batch.task == "mlm" else ["pairs"])
    assert found == {step: {run.recipe.task_of(step)} for step in range(2, 8)}


def test_streams_that_a_task_does_not_name_are_not_made(make: Callable[..., Train], squares: Dataset) -> None:
    tasks = {"text": Task(objectives=["mlm"], streams=["text"]), "itm": TASKS["itm"]}
    run = prepare(make(tasks=tasks), [squares])
    with run.loader.batches(0) as batches:
        for batch in (next(batches) for _ in range(8)):
            assert set(batch.streams) == ({"text"} if batch.task == "text" else {"image", "text"})


def test_micro_batches_give_the_gradient_of_one_batch(make: Callable[..., Train], squares: Dataset) -> None:
    found = []
    for accumulate in (1, 4):
        recipe = make(
            accumulate=accumulate,
            tasks={"mlm": TASKS["mlm"], "itm": Task(objectives=["match"])},
            objectives=[{"use": "masked_lm:MaskedLm", "view": "words"}, "match:Match"],
            views={"words": ["mask_text:MaskText"]},
            steps=1,
            seed=first_seed_of(make, "mlm"),
        )
        run = prepare(recipe, [squares])
        with run.loader.batches(0) as batches:
            fit_module.accumulate(run, [next(batches) for _ in range(accumulate)])
        found.append(run.net.model.word_head.dense.weight.grad)
    assert torch.allclose(*found, atol=1e-6)


def first_seed_of(make: Callable[..., Train], task: str) -> int:
    return next(seed for seed in range(20) if make(seed=seed).task_of(0) == task)


def test_means_are_over_the_steps_that_ran_a_loss(
    make: Callable[..., Train], squares: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = next(s for s in range(20) if len({make(seed=s).task_of(step) for step in range(5)}) == 2)
    each = run_gather(
        make(seed=seed, log_every=1), [squares], tmp_path / "each", say=lambda _: None
    ).table.to_pylist()
    all_at_once = run_gather(
        make(seed=seed, log_every=8), [squares], tmp_path / "once", say=lambda _: None
    ).table
    means = {row["name"]: row["value"] for row in all_at_once.to_pylist()}
    for name in ("mlm/mlm", "itm/match", "itm/word_region", "loss"):
        values = [row["value"] for row in each if row["name"] == name]
        assert 0 < len(values) < 8 or name == "loss"
        assert means[name] == pytest.approx(sum(values) / len(values), rel=1e-6)
    own = {row["step"]: row["name"].partition("/")[0] for row in each if "/" in row["name"]}
    assert own == {step + 1: make(seed=seed).task_of(step) for step in range(8)}

    def dies(run: Any, batches: Any) -> None:
        if run.step == 5:
            raise KeyboardInterrupt
        train_step(run, batches)

    with monkeypatch.context() as patch:
        patch.setattr(fit_module, "train_step", dies)
        with pytest.raises(KeyboardInterrupt):
            run_gather(
                make(seed=seed, log_every=8, checkpoint_every=2),
                [squares],
                tmp_path / "killed",
                say=lambda _: None,
            )
    again = run_gather(
        make(seed=seed, log_every=8, checkpoint_every=2), [squares], tmp_path / "killed", say=lambda _: None
    )
    assert again.table.equals(all_at_once)


@pytest.mark.parametrize(
    ("tasks", "says"),
    [
        ({"a": Task(objectives=["mml"])}, r"tasks\.a: no objective is or returns 'mml'; did you mean 'mlm'"),
        (
            {"a": Task(objectives=["mlm"], view="word")},
            r"tasks\.a: `views` has no view 'word'; did you mean 'words'",
        ),
        ({"a": Task(objectives=["mlm"])}, r"tasks: none runs match:Match, word_region:WordRegion"),
        (
            {**TASKS, "b": Task(objectives=["mlm"], streams=["txt"])},
            r"tasks\.b\.streams: .* did you mean 'text'",
        ),
        (
            {**TASKS, "b": Task(weight=0.0, objectives=["mlm"])},
            r"tasks\.b: the weight must be above 0, got 0\.0",
        ),
        ({"a": Task(objectives=[])}, r"tasks\.a: wanted at least one objective"),
    ],
)
def test_mistakes_are_said_before_the_run(make: Callable[..., Train], tasks: Any, says: str) -> None:
    (problem,) = make(tasks=tasks).preflight()
    assert re.search(says, problem), problem


def test_a_wrong_key_of_a_task_is_refused(make: Callable[..., Train]) -> None:
    with pytest.raises(ValidationError, match="wieght"):
        TypeAdapter(dict[str, Task]).validate_python({"a": {"objectives": ["mlm"], "wieght": 2}})
