"""Logistic regression by L-BFGS against scipy's minimiser and the conditions of a minimum; the search of the penalty."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from vlpipe.stages.probing import logistic
from vlpipe.stages.probing.logistic import fitted, penalty_at, searched


def made(num: int = 60, width: int = 5, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, num)
    features = rng.normal(size=(num, width)) + np.eye(classes, width)[labels]
    return features.astype(np.float32), labels


@pytest.mark.parametrize("penalty", [0.01, 1.0, 100.0])
def test_it_is_the_minimum_that_scipy_finds(penalty: float) -> None:
    features, labels = made()
    x, y = features.astype(np.float64), np.eye(3)[labels]

    def objective(flat: np.ndarray) -> float:
        w, b = flat[:15].reshape(3, 5), flat[15:]
        return float(-(log_softmax(x @ w.T + b, axis=1) * y).sum() + penalty / 2 * (w**2).sum())

    wanted = minimize(objective, np.zeros(18), method="BFGS", options={"gtol": 1e-6})
    found = fitted(features, labels, 3, penalty)
    assert objective(np.r_[found.weight.ravel(), found.bias]) == pytest.approx(wanted.fun, rel=1e-8)
    assert found.weight == pytest.approx(wanted.x[:15].reshape(3, 5), abs=2e-3)


def test_the_gradient_vanishes_and_blocks_do_not_change_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the minimum, penalty x weights is the sum over rows of (true class - probability) x features."""
    features, labels = made()
    whole = fitted(features, labels, 3, 2.0)
    error = np.eye(3)[labels] - softmax(whole.scores(features), axis=1)
    assert 2.0 * whole.weight == pytest.approx(error.T @ features, abs=60 * 1e-6)
    assert error.sum(0) == pytest.approx(np.zeros(3), abs=60 * 1e-6)
    monkeypatch.setattr(logistic, "BLOCK_VALUES", 8 * 7)  # 7 rows at a time
    assert fitted(features, labels, 3, 2.0).weight == pytest.approx(whole.weight, abs=1e-6)


def test_a_class_without_images_is_never_the_answer() -> None:
    features, labels = made()
    assert set(fitted(features, 2 * labels, 5, 1.0).classes(features)) <= {0, 2, 4}


def test_without_features_the_biases_are_the_logarithms_of_the_shares() -> None:
    labels = np.repeat([0, 1], [30, 10])
    found = fitted(np.zeros((40, 2), np.float32), labels, 2, 1.0)
    assert found.bias[0] - found.bias[1] == pytest.approx(np.log(3), abs=1e-4)
    assert not found.weight.any()


@pytest.mark.parametrize("peak", [0, 5, 41, 48, 77, 96])
def test_the_search_finds_a_peak_with_at_most_15_fits(peak: int) -> None:
    """97 penalties from 10^-6 to 10^6, 8 per decade."""
    asked: list[float] = []

    def accuracy(penalty: float) -> float:
        asked.append(penalty)
        return -abs(8 * (np.log10(penalty) + 6) - peak)

    assert searched(accuracy) == pytest.approx(penalty_at(peak))
    assert len(asked) <= 15
    assert len(set(asked)) == len(asked)
    assert asked[:7] == pytest.approx([10.0**k for k in range(-6, 7, 2)])


def test_of_equal_penalties_the_largest_counts() -> None:
    assert searched(lambda penalty: 0.5) == pytest.approx(1e6)
