from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from vlpipe.stages.train.schedule import learning_rate
from vlpipe.stages.train.train import Train

Make = Callable[..., Train]


def rates(recipe: Train, num_steps: int = 101) -> list[float]:
    return [learning_rate(recipe, step, num_steps, 160) for step in range(num_steps)]


def test_warm_up_is_a_line_to_the_peak(recipe_of: Make) -> None:
    lr = rates(recipe_of(lr=1.0, min_lr=0.0, warmup_steps=10))
    assert lr[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert lr[10] == 1.0


def test_cosine_and_linear_end_at_min_lr(recipe_of: Make) -> None:
    cosine = rates(recipe_of(lr=1.0, min_lr=0.2))
    assert cosine == pytest.approx([0.2 + 0.4 * (1 + math.cos(math.pi * k / 100)) for k in range(101)])
    linear = rates(recipe_of(lr=1.0, min_lr=0.2, schedule="linear"))
    assert linear == pytest.approx([1.0 - 0.008 * k for k in range(101)])


def test_step_decay_is_blips(recipe_of: Make) -> None:
    """lr x 0.9^epoch, not below min_lr; 160 samples and batches of 16 make epochs of 10 steps."""
    lr = rates(recipe_of(lr=3e-4, min_lr=1.5e-4, schedule="step_decay", decay_rate=0.9, batch_size=16))
    assert lr == pytest.approx([max(1.5e-4, 3e-4 * 0.9 ** (k // 10)) for k in range(101)])


def test_step_decay_after_a_warm_up_of_several_epochs_has_no_cliff(recipe_of: Make) -> None:
    """Epochs of 10 steps: warm-up ends in step 24, in epoch 2; the first decay is in step 30."""
    lr = rates(recipe_of(lr=1.0, min_lr=0.0, schedule="step_decay", warmup_steps=25, batch_size=16))
    assert lr[:25] == pytest.approx([(k + 1) / 25 for k in range(25)])
    assert lr[25:] == pytest.approx([0.9 ** (k // 10 - 2) for k in range(25, 101)])


def test_a_warm_up_that_ends_with_an_epoch(recipe_of: Make) -> None:
    lr = rates(recipe_of(lr=1.0, min_lr=0.0, schedule="step_decay", warmup_steps=10, batch_size=16))
    assert lr[9:20] == pytest.approx([1.0, *[0.9] * 10])


def test_a_run_of_one_step(recipe_of: Make) -> None:
    assert rates(recipe_of(lr=1.0), num_steps=1) == [1.0]


def test_milestones(recipe_of: Make) -> None:
    """Epochs of 10 steps; a tenth from epochs 3 and 7 on, as MoCo's from 120 and 160."""
    settings = {"lr": 0.03, "min_lr": 0.0, "schedule": "milestones", "decay_rate": 0.1, "batch_size": 16}
    lr = rates(recipe_of(milestones=[3, 7], **settings))
    assert lr == pytest.approx([0.03 * 0.1 ** ((k >= 30) + (k >= 70)) for k in range(101)])
    for changes in ({"schedule": "milestones"}, {"milestones": [3]}):
        (problem,) = recipe_of(**changes).problems()
        assert problem.startswith("`milestones` are the epochs at which schedule: milestones decays")
