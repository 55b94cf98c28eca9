"""The learning rate of a step, in closed form. Warm-up may span several epochs.

BLIP warms up in its first epoch only, so on small data its rate jumps from a partial warm-up to 0.9 of the peak.
"""

from __future__ import annotations

import math

from vlpipe.stages.train.recipe import Optimisation


def learning_rate(recipe: Optimisation, step: int, num_steps: int, samples_per_epoch: int) -> float:
    """Learning rate of `step` (0 to `num_steps` - 1).

    The last warm-up step has the peak rate `lr`. With "cosine" and "linear" the last step has `min_lr`.
    """
    if step < recipe.warmup_steps:
        return recipe.lr * (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(1, num_steps - 1 - recipe.warmup_steps)  # 0 to 1
    span = recipe.lr - recipe.min_lr
    if recipe.schedule == "cosine":
        return recipe.min_lr + span * (1 + math.cos(math.pi * done)) / 2
    if recipe.schedule == "linear":
        return recipe.min_lr + span * (1 - done)
    epoch = step * recipe.batch_size // samples_per_epoch
    return max(recipe.min_lr, recipe.lr * recipe.decay_rate**epoch)
