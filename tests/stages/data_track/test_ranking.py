from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.testing import GatherOutput, dataset, run_gather
from vlpipe.stages.common.row import RESULTS
from vlpipe.stages.data_track.ranking import Ranking, interval

SCORES = {"retrieval": ["r.tr@1", "r.ir@1"], "fine": ["f.choice"]}


def results(**values: float | None) -> pa.Table:
    names = [name.replace("_at_", "@") for name in values]
    return pa.table({"name": names, "value": list(values.values()), "num_rows": [9] * len(values)}, RESULTS)


def inputs(folder: Path, figures: dict[str, tuple[float, float, float | None]]) -> list[Any]:
    """figures: cell -> tr@1, ir@1, choice"""
    found = []
    for cell, (tr, ir, choice) in figures.items():
        found.append(dataset(folder, results(tr_at_1=tr, ir_at_1=ir, other=9.0), f"r@{cell}"))
        found.append(dataset(folder, results(choice=choice), f"f@{cell}"))
    return found


def rank(folder: Path, figures: dict[str, tuple[float, float, float | None]], **more: Any) -> GatherOutput:
    return run_gather(Ranking(scores=SCORES, **more), inputs(folder, figures), folder)


def test_entries_are_ranked_by_the_mean_of_all_scores_over_all_runs(tmp_path: Path) -> None:
    """Means of all scores: a 0.3 and 0.5, b 0.5 and 0.4."""
    figures = {"a-0": (0.0, 0.2, 0.5), "a-1": (0.4, 0.4, 0.6), "b-0": (0.1, 0.3, 0.8), "b-1": (0.1, 0.3, 0.6)}
    out = rank(tmp_path, figures)
    found = {row["name"]: row["value"] for row in out.table.to_pylist()}
    assert list(found) == [
        f"{entry}/{name}{half}"
        for entry in ("b", "a")
        for name in ("mean", "retrieval", "fine")
        for half in ("", " +-")
    ]
    assert {row["num_rows"] for row in out.table.to_pylist()} == {2}
    assert found["b/mean"] == pytest.approx(0.45)
    assert found["a/mean"] == pytest.approx(0.4)
    assert found["a/retrieval"] == pytest.approx(0.25)
    assert found["a/mean +-"] == pytest.approx(12.706 * 0.1)  # sd 0.1414 over the root of 2
    page = (out.artifacts / "table.md").read_text()
    assert "| 1 | b | 0.450 ± 0.635 | 0.200 ± 0.000 | 0.700 ± 1.271 |" in page
    assert page.endswith("|  | b | a |\n| --- | --- | --- |\n| b |  | 1 |\n| a | 1 |  |\n")


def test_the_entry_may_be_another_label_and_one_run_has_no_interval(tmp_path: Path) -> None:
    out = rank(tmp_path, {"0-small-a": (0.0, 0.0, 0.0), "0-small-b": (1.0, 1.0, 1.0)}, entry_label=2)
    rows = out.table.to_pylist()
    assert (rows[0]["name"], rows[0]["value"]) == ("b/mean", 1.0)
    assert (rows[1]["name"], rows[1]["value"]) == ("b/mean +-", None)
    assert "| 2 | a | 0.000 | 0.000 | 0.000 |" in (out.artifacts / "table.md").read_text()


def test_the_interval_is_students() -> None:
    assert interval([1.0, 2.0, 3.0, 4.0, 5.0]) == (3.0, pytest.approx(2.776 * 1.5811 / 5**0.5, abs=1e-3))
    many = interval([0.0, 1.0] * 50)
    assert many[1] == pytest.approx(2.042 * 0.50252 / 10, abs=1e-4)


def test_a_figure_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(VlpipeError, match=r"scores.fine: f.choice of f@a-0 is null"):
        rank(tmp_path / "null", {"a-0": (0.1, 0.1, None)})
    with pytest.raises(VlpipeError, match=r"scores.fine: f.choice of f@a-0 is nan"):
        rank(tmp_path / "nan", {"a-0": (0.1, 0.1, float("nan"))})
    stage, there = Ranking(scores={"retrieval": ["r.tr@2"]}), inputs(tmp_path, {"a-0": (0.1, 0.1, 0.1)})
    with pytest.raises(VlpipeError, match=r"scores.retrieval: there is no r.tr@2; did you mean 'r.tr@1'\?"):
        run_gather(stage, there, tmp_path)


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (["r@a-0", "f@a-0", "r@b-0"], "entry 'b' has no input f@... of the run '0', as others have"),
        (
            ["r@a-0", "f@a-0", "r@a-1", "f@a-1", "r@b-1", "f@b-1"],
            "entry 'b' has no input r@... of the run '0'",
        ),
        (["r@a-0", "g@a-0"], "scores.fine: no input is named 'f'; there are: g, r"),
        (["r", "f"], "entry_label: 0 is not the number of a label of input 'r', which has 0"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_in_the_plan(names: list[str], why: str) -> None:
    with pytest.raises(VlpipeError, match=re.escape(why)):
        Ranking(scores=SCORES).with_inputs(names)
    assert Ranking(scores=SCORES).with_inputs(["r@a-0", "f@a-0"]) == Ranking(scores=SCORES)


def test_scores_that_cannot_be_are_refused_in_the_plan() -> None:
    assert Ranking(scores=SCORES).preflight() == []
    assert Ranking(scores={}).preflight() == ["scores: wanted at least one"]
    assert Ranking(scores={"a": ["tr@1"], "b": []}).preflight() == [
        "scores.a: wanted figures STEP.METRIC, got ['tr@1']",
        "scores.b: wanted figures STEP.METRIC, got []",
    ]
    assert Ranking(scores={"mean": ["r.x"]}).preflight() == [
        "scores: 'mean' is the name of the mean of all scores"
    ]
