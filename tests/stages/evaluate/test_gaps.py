"""Differences of arms along an axis, worked by hand."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.testing import dataset, run_gather
from vlpipe.stages.common.row import RESULTS
from vlpipe.stages.evaluate.video.gaps import Gaps

SHARES = {"0-1": 0.5, "0-5": 0.4, "10-1": 0.2, "10-5": 0.35, "2-1": 0.4, "2-5": 0.45}


def found(tmp_path: Path, shares: dict[str, float], **more: str) -> dict[str, float]:
    inputs = [
        dataset(
            tmp_path,
            pa.table({"name": ["r@10", "x"], "value": [v, 1.0], "num_rows": [100, 1]}, RESULTS),
            f"r@{n}",
        )
        for n, v in shares.items()
    ]
    stage = Gaps(metric="r@10", **{"more": "5", "fewer": "1", **more})
    return {r["name"]: r["value"] for r in run_gather(stage, inputs, tmp_path).table.to_pylist()}


def test_gaps_by_hand(tmp_path: Path) -> None:
    """Labels are in numerical order: 10 is the last, not 2."""
    rows = found(tmp_path, SHARES)
    assert [*rows] == ["gap/0", "gap/2", "gap/10", "growth", "growth/se"]
    error = ((0.35 * 0.65 + 0.2 * 0.8 + 0.4 * 0.6 + 0.5 * 0.5) / 100) ** 0.5
    assert [*rows.values()] == pytest.approx([-0.1, 0.05, 0.15, 0.25, 0.25 / error])


def test_a_missing_arm_is_an_error(tmp_path: Path) -> None:
    lacking = {name: value for name, value in SHARES.items() if name != "2-1"}
    with pytest.raises(VlpipeError, match="there is no input with labels 2 and 1"):
        found(tmp_path, lacking)
    with pytest.raises(VlpipeError, match="two inputs are of labels 0 and 1"):
        found(tmp_path, {**SHARES, "0-1-b": 0.5})
    with pytest.raises(VlpipeError, match="r@0 has no labels 0 and 1"):
        found(tmp_path, {"0": 0.5})
