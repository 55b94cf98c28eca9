from pathlib import Path

import pyarrow as pa
import pytest

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.testing import dataset, run_gather
from vlpipe.stages.common.row import RESULTS
from vlpipe.stages.evaluate.compare import Compare


def results(value: float) -> pa.Table:
    return pa.table({"name": ["tr@1", "ir@1"], "value": [value, 0.5], "num_rows": [10, 50]}, RESULTS)


def test_mean_and_sample_spread_per_arm(tmp_path: Path) -> None:
    inputs = [dataset(tmp_path, results(v), name) for name, v in (("a0", 0.1), ("a1", 0.3), ("b0", 0.7))]
    stage = Compare(arms={"none": ["a0", "a1"], "C+F": ["b0"]}, only=("tr@1",))
    rows = run_gather(stage, inputs, tmp_path).table.to_pylist()
    assert [(r["name"], r["num_rows"]) for r in rows] == [
        ("none/tr@1 mean", 2),
        ("none/tr@1 sd", 2),
        ("C+F/tr@1 mean", 1),
        ("C+F/tr@1 sd", 1),
    ]
    assert [r["value"] for r in rows[:3]] == pytest.approx([0.2, 0.1414214, 0.7])
    assert rows[3]["value"] is None


def test_an_arm_that_names_no_input_says_what_there_is(tmp_path: Path) -> None:
    stage = Compare(arms={"none": ["a1"]})
    with pytest.raises(
        VlpipeError, match=r"arms.none: there is no input a1; the inputs of this step are a0$"
    ):
        run_gather(stage, [dataset(tmp_path, results(0.1), "a0")], tmp_path)
