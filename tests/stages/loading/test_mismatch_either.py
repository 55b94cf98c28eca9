"""Negatives of both kinds: half of the samples, each stream about as often, never of the same picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vlpipe.stages.loading.corruptors.mismatch_either import MismatchEither
from vlpipe.stages.loading.makers.base import ROW, SAYS, note


def sample(k: int) -> Any:
    own = {ROW: note(k // 2), "data": np.array([k])}
    return {"text": {**own, SAYS: note(f"text {k}")}, "regions": dict(own)}


def test_either_stream_is_replaced_and_the_truth_recorded() -> None:
    num = 400
    found = MismatchEither()(
        [sample(k) for k in range(num)],
        lambda k: np.random.default_rng((5, k)),
        {"text": None, "regions": None},
    )  # type: ignore[dict-item]
    changed = {"text": 0, "regions": 0}
    for k, one in enumerate(found):
        others = {name: int(one[name]["data"][0]) for name in changed if one[name]["data"][0] != k}
        assert int(one["text"]["target/match"]) == (not others)
        assert "target/match" not in one["regions"]
        assert len(others) <= 1
        for name, other in others.items():
            changed[name] += 1
            assert other // 2 != k // 2
    assert abs(sum(changed.values()) - num / 2) < 4 * (num / 4) ** 0.5
    assert abs(changed["text"] - num / 4) < 4 * (num * 3 / 16) ** 0.5


def test_the_stream_that_records_must_be_one_of_them() -> None:
    with pytest.raises(ValueError, match="streams must have 'text', got regions"):
        MismatchEither(streams=("regions",))
