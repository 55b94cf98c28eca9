"""Computes the learning rate of a step from the step number. Warm-up may span several epochs.

BLIP warms up in the first epoch only: if that is shorter than the warm-up, its rate jumps to 0.9 of the peak. Here a
warm-up goes on over epochs, and decay begins with the first epoch after it.
"""

from __future__ import annotations

import math

from vlpipe.stages.train.recipe import Optimisation


def learning_rate(recipe: Optimisation, step: int, num_steps: int, samples_per_epoch: int) -> float:
    """Returns the learning rate of `step` (0 to `num_steps` - 1).

    Warm-up is linear, from `lr / warmup_steps` in step 0; its last step has the peak rate `lr`. With "cosine" and "linear"
    the last step of the run has `min_lr`; with "step_decay" the rate is multiplied by `decay_rate` at each new epoch after
    that in which warm-up ends, down to `min_lr`; with "milestones" at each of those epochs.
    """
    if step < recipe.warmup_steps:
        return recipe.lr * (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(1, num_steps - 1 - recipe.warmup_steps)  # 0 to 1
    span = recipe.lr - recipe.min_lr
    if recipe.schedule == "cosine":
        return recipe.min_lr + span * (1 + math.cos(math.pi * done)) / 2
    if recipe.schedule == "linear":
        return recipe.min_lr + span * (1 - done)
    epoch, warm = (
        at * recipe.batch_size // samples_per_epoch for at in (step, max(0, recipe.warmup_steps - 1))
    )
    times = sum(m <= epoch for m in recipe.milestones) if recipe.schedule == "milestones" else epoch - warm
    return max(recipe.min_lr, recipe.lr * recipe.decay_rate**times)
