from __future__ import annotations

import pytest

from vlpipe.stages.train.itm_alarm import PRIOR_LOSS, LossRow, collapsed


def run(*values: tuple[int, float, float]) -> list[LossRow]:
    return [
        one
        for step, loss, accuracy in values
        for one in ((step, "itm", loss), (step, "itm_accuracy", accuracy), (step, "lm", 3.0))
    ]


def test_prior_is_the_known_number() -> None:
    assert pytest.approx(0.6365, abs=1e-4) == PRIOR_LOSS


def test_fires_when_stuck_at_the_prior() -> None:
    stuck = run(*((step, 0.637 + 0.005 * (-1) ** (step // 50), 0.6667) for step in range(50, 1050, 50)))
    assert collapsed(stuck, after=1000) == pytest.approx(0.637, abs=0.003)
    assert collapsed(stuck, after=1001) is None  # too early to judge


@pytest.mark.parametrize(
    ("loss", "accuracy"),
    [
        (0.58, 0.68),  # it learns
        (0.640, 0.71),  # accuracy leaves the prior: it learns
        (0.69, 0.5),  # a coin: worse than the prior, but another fault
        (0.66, 0.667),  # outside of the band
    ],
)
def test_silent_otherwise(loss: float, accuracy: float) -> None:
    assert collapsed(run(*((step, loss, accuracy) for step in range(50, 2050, 50))), after=1000) is None


def test_a_run_that_passed_the_prior_is_healthy() -> None:
    values = [(step, max(0.3, 0.75 - step * 0.0002), 0.667) for step in range(50, 2050, 50)]
    assert collapsed(run(*values), after=1000) is None


def test_only_the_recent_steps_count() -> None:
    late = [(step, 0.4, 0.8) for step in range(50, 1000, 50)]
    late += [(step, 0.6365, 2 / 3) for step in range(1000, 1500, 50)]
    assert collapsed(run(*late), after=1000) is not None


def test_without_matching_there_is_nothing_to_judge() -> None:
    assert collapsed([(2000, "lm", 0.6365)], after=1000) is None
    assert collapsed([], after=0) is None
