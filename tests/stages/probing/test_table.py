"""The table of a suite: lines, means, and cells that are missing."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.stage import Dataset
from vlpipe.pipeline.testing import dataset, run_gather
from vlpipe.stages.common.row import RESULTS
from vlpipe.stages.probing.table import SuiteTable


def step(tmp_path: Path, name: str, value: float | None, num: int = 10) -> Dataset:
    table = pa.Table.from_pylist([{"name": "top1", "value": value, "num_rows": num}], RESULTS)
    return dataset(tmp_path / name, table, name)


def test_a_line_per_model_and_the_mean_over_sets(tmp_path: Path) -> None:
    inputs = [
        step(tmp_path, f"probe@{kind}-{model}", value)
        for (kind, model), value in {
            ("a", "clip"): 0.5,
            ("b", "clip"): 0.7,
            ("a", "mae"): 0.2,
            ("b", "mae"): 0.1,
        }.items()
    ]
    out = run_gather(SuiteTable(figures=["probe.top1"]), inputs, tmp_path / "out")
    assert {row["name"]: (row["value"], row["num_rows"]) for row in out.table.to_pylist()} == {
        "clip/probe.top1/a": (0.5, 10),
        "clip/probe.top1/b": (0.7, 10),
        "clip/probe.top1": (pytest.approx(0.6), 2),
        "mae/probe.top1/a": (0.2, 10),
        "mae/probe.top1/b": (0.1, 10),
        "mae/probe.top1": (pytest.approx(0.15), 2),
    }
    assert (out.artifacts / "table.md").read_text().splitlines() == [
        "|  | a | b | mean |",
        "| --- | --- | --- | --- |",
        "| clip/probe.top1 | 0.500 | 0.700 | 0.600 |",
        "| mae/probe.top1 | 0.200 | 0.100 | 0.150 |",
    ]


def test_without_further_axes_the_figure_is_the_line(tmp_path: Path) -> None:
    out = run_gather(SuiteTable(figures=["probe.top1"]), [step(tmp_path, "probe@a", 1.0)], tmp_path / "out")
    assert out.table["name"].to_pylist() == ["probe.top1/a", "probe.top1"]


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    stage = SuiteTable(figures=["probe.top1"])
    for names, message in (
        (["probe"], "set_label: 0 is not the number of a label of input 'probe', which has 0"),
        (["knn@a"], "no input is named 'probe'"),
        (["probe@a", "probe@b", "knn@a"], "knn has no input of set 'b', as others have"),
    ):
        with pytest.raises(VlpipeError, match=message):
            stage.with_inputs(names)
    for value, figure, message in (
        (0.1, "probe.top5", "has no figure 'top5'"),
        (None, "probe.top1", "top1 of probe@a is null"),
    ):
        with pytest.raises(VlpipeError, match=message):
            run_gather(SuiteTable(figures=[figure]), [step(tmp_path, "probe@a", value)], tmp_path / "out")
    assert SuiteTable(figures=["probe"]).preflight() == ["figures: wanted STEP.METRIC, got ['probe']"]
    assert SuiteTable(figures=[]).preflight() == ["figures: wanted STEP.METRIC, got none"]
