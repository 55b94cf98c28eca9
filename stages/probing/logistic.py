"""Multinomial logistic regression by L-BFGS, and the search for its penalty, as in CLIP's linear probes.

Radford et al. 2021, https://arxiv.org/abs/2103.00020, appendix A.3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vlpipe.pipeline.errors import VlpipeError

PER_DECADE = 8  # resolution of the search
DECADES = (-6, 6)  # of the penalty
FIRST_STEP = 2 * PER_DECADE  # between the first 7 penalties that are tried
BLOCK_VALUES = 1 << 24  # features in double precision at a time: 128 MB


@dataclass(frozen=True)
class Classifier:
    """Linear scores of features. weight: (C, D), bias: (C,)."""

    weight: npt.NDArray[np.float64]
    bias: npt.NDArray[np.float64]

    def scores(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """(N, D) -> (N, C)."""
        found: npt.NDArray[np.float64] = features @ self.weight.T + self.bias
        return found

    def classes(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """(N, D) -> (N,): those with the highest score; of equal ones the first."""
        return self.scores(features).argmax(1)


def fitted(
    features: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    num_classes: int,
    penalty: float,
    max_iterations: int = 1000,
) -> Classifier:
    """Returns the minimum of the sum of cross-entropies + penalty / 2 x the squared norm of the weights, not of the biases.

    features (N, D), labels (N,). penalty: 1 / C of scikit-learn's LogisticRegression. L-BFGS with a line
    search for the strong Wolfe conditions starts at 0 and ends where no derivative of the objective over N is above 1e-6, or
    after `max_iterations`.
    """
    x, y = torch.from_numpy(features), torch.from_numpy(labels)
    num, width = x.shape
    weights = torch.zeros(num_classes, width + 1, dtype=torch.float64)
    size = max(1, BLOCK_VALUES // (width + num_classes))

    def loss() -> Tensor:
        """Sets the gradient, and returns the objective, both divided by N."""
        total = weights.new_zeros(())
        grad = torch.zeros_like(weights)
        for start in range(0, num, size):
            part, truth = x[start : start + size].double(), y[start : start + size]
            logs = torch.log_softmax(part @ weights[:, :-1].T + weights[:, -1], dim=1)
            total -= logs.gather(1, truth[:, None]).sum()
            error = logs.exp()
            error[torch.arange(len(truth)), truth] -= 1
            grad[:, :-1] += error.T @ part
            grad[:, -1] += error.sum(0)
        grad[:, :-1] += penalty * weights[:, :-1]
        weights.grad = grad / num
        return (total + penalty / 2 * weights[:, :-1].square().sum()) / num

    search = torch.optim.LBFGS(
        [weights],
        max_iter=max_iterations,
        max_eval=10 * max_iterations,
        tolerance_grad=1e-6,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )
    search.step(loss)
    if not weights.isfinite().all():
        raise VlpipeError(
            f"the logistic regression with penalty {penalty:g} gave weights that are not finite"
        )
    return Classifier(weights[:, :-1].numpy(), weights[:, -1].numpy())


def penalty_at(place: int) -> float:
    """Returns the penalty at a place of the grid: 10^-6 at 0, 10^6 at the last, 8 places per decade."""
    return float(10.0 ** (DECADES[0] + place / PER_DECADE))


def searched(accuracy: Callable[[float], float]) -> float:
    """Returns the penalty with the best accuracy: of 10^-6, 10^-4, ..., 10^6, then at half the interval on both sides of the
    peak, until there are 8 steps per decade. accuracy: of a penalty, on a validation split; it is asked for 15 at most.

    Of equally good penalties the largest counts.
    """
    last = (DECADES[1] - DECADES[0]) * PER_DECADE
    tried = {place: accuracy(penalty_at(place)) for place in range(0, last + 1, FIRST_STEP)}
    step = FIRST_STEP
    while step > 1:
        step //= 2
        peak = max(tried, key=lambda place: (tried[place], place))
        for place in (peak - step, peak + step):
            if 0 <= place <= last and place not in tried:
                tried[place] = accuracy(penalty_at(place))
    return penalty_at(max(tried, key=lambda place: (tried[place], place)))
