"""The metrics of GLUE and SQuAD, worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vlpipe.stages.text_tasks.answered import figures as squad_figures
from vlpipe.stages.text_tasks.classified import figures
from vlpipe.stages.text_tasks.metrics import (
    accuracy,
    binary_f1,
    exact,
    f1,
    matthews,
    normalised,
    pearson,
    spearman,
)


def labels(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def test_classes_by_hand() -> None:
    """Of class 1, two are found, one is missed, one is wrong; of class 0, one is right."""
    guessed, true = labels(1, 1, 0, 1, 0), labels(1, 1, 1, 0, 0)
    assert accuracy(guessed, true) == 3 / 5
    assert binary_f1(guessed, true) == 2 * 2 / (3 + 3)
    # (2 x 1 - 1 x 1) / sqrt(3 x 3 x 2 x 2)
    assert matthews(guessed, true) == pytest.approx(1 / 6)
    assert binary_f1(labels(0, 0), labels(0, 0)) == 0
    assert binary_f1(labels(0, 0), labels(0, 1)) == 0


def test_matthews_of_the_extremes_and_of_three_classes() -> None:
    true = labels(0, 1, 0, 1)
    assert matthews(true, true) == 1
    assert matthews(1 - true, true) == -1
    assert matthews(labels(1, 1, 1, 1), true) == 0
    # three classes, 5 of 6 right; guessed 2 of each, true 3, 2 and 1
    guessed, three = labels(0, 0, 1, 1, 2, 2), labels(0, 0, 1, 1, 2, 0)
    assert accuracy(guessed, three) == 5 / 6
    wanted = (5 * 6 - (2 * 3 + 2 * 2 + 2 * 1)) / math.sqrt((36 - 12) * (36 - 14))
    assert matthews(guessed, three) == pytest.approx(wanted)


def test_correlations_by_hand() -> None:
    a, b = np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 5.0])
    # deviations (-1, 0, 1) and (-1, -1, 2): 3 / sqrt(2 x 6)
    assert pearson(a, b) == pytest.approx(3 / math.sqrt(12))
    # ranks (1, 2, 3) and (1.5, 1.5, 3): deviations (-1, 0, 1) and (-.5, -.5, 1): 1.5 / sqrt(2 x 1.5)
    assert spearman(a, b) == pytest.approx(1.5 / math.sqrt(3))
    assert spearman(a, np.exp(10 * a)) == pytest.approx(1)
    assert pearson(a, np.ones(3)) == spearman(a, np.ones(3)) == 0


@pytest.mark.parametrize(
    ("answer", "same"),
    [
        ("The Norman-Conquest!", "normanconquest"),
        ("  a  red   Another ", "red another"),
        ("theatre", "theatre"),
        ("an (a) the", ""),
    ],
)
def test_normalised(answer: str, same: str) -> None:
    assert normalised(answer) == same


@pytest.mark.parametrize(
    ("guessed", "true", "is_exact", "score"),
    [
        ("the red circle", ["Red circle."], 1, 1),
        ("red circle", ["a blue circle", "circle"], 0, 2 / 3),  # of 2 and 1 words, one in common
        ("red red circle", ["red circle circle"], 0, 2 * 2 / 6),  # words count as often as both have them
        ("square", ["circle"], 0, 0),
        ("", ["circle"], 0, 0),
        ("", [], 1, 1),
        ("circle", [], 0, 0),
        ("the", ["a"], 1, 1),  # nothing is left of either
    ],
)
def test_answers(guessed: str, true: list[str], is_exact: int, score: float) -> None:
    assert exact(guessed, true) == is_exact
    assert f1(guessed, true) == pytest.approx(score)


def test_figures_of_classes_and_of_scores() -> None:
    logits = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    found = figures(logits, np.array([1.0, 1.0, 1.0, 0.0]))
    assert found["accuracy"] == 0.75
    assert found["accuracy_prior"] == 0.75
    assert found["accuracy_se"] == pytest.approx(math.sqrt(0.75 * 0.25 / 4))
    assert found["f1"] == pytest.approx(4 / 5)
    assert found["matthews"] == pytest.approx(2 / math.sqrt(2 * 3 * 2 * 1))
    assert "f1" not in figures(np.eye(3), np.array([0.0, 1.0, 2.0]))
    assert figures(np.array([[1.0], [2.0]]), np.array([5.0, 7.0])) == pytest.approx(
        {"pearson": 1.0, "spearman": 1.0}
    )


def test_figures_of_answers() -> None:
    values = [(True, 1.0, 1.0), (True, 0.0, 0.5), (False, 1.0, 1.0), (False, 0.0, 0.0)]
    assert {name: (value, num) for name, value, num in squad_figures(values)} == {
        "exact": (0.5, 4),
        "f1": (0.625, 4),
        "exact/answered": (0.5, 2),
        "f1/answered": (0.75, 2),
        "exact/unanswered": (0.5, 2),
    }
    assert [name for name, _, _ in squad_figures(values[:2])] == ["exact", "f1"]
