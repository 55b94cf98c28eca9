from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from arms_toys import Evaluated, Figures

from vlpipe.pipeline.engine.records.keys import key_params
from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.testing import dataset, run_gather
from vlpipe.stages.common.row import RESULTS
from vlpipe.stages.evaluate.compare import Compare, arms_of
from vlpipe.stages.evaluate.items import ITEMS, items, write_items

Hits = Mapping[str, list[float]]  # item -> value


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


# Intervals


class Runs:
    """Evaluation steps with items."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.inputs: list[Any] = []
        self.items: dict[str, File] = {}

    def add(self, step: str, metrics: Mapping[str, Mapping[str, float]], more: tuple[str, ...] = ()) -> None:
        """metrics: name -> item -> value. more: names of metrics without items, of value 0.5."""
        folder = self.folder / step
        folder.mkdir(parents=True)
        write_items(
            folder,
            [
                items(metric, [(item, item.partition("#")[0]) for item in of], np.array(list(of.values())))
                for metric, of in metrics.items()
            ],
        )
        means = {m: float(np.mean(list(of.values()))) for m, of in metrics.items()} | dict.fromkeys(more, 0.5)
        table = pa.table([list(means), list(means.values()), [1] * len(means)], schema=RESULTS)
        self.inputs.append(dataset(self.folder, table, step))
        self.items[step] = File(path=str(folder / "items.parquet"))

    def compare(self, arms: dict[str, list[str]], **parameters: Any) -> dict[str, float | None]:
        stage = Compare(arms=arms, items=self.items, **parameters)
        assert stage.preflight() == []
        found = run_gather(stage, self.inputs, self.folder / "out").table
        return dict(zip(found["name"].to_pylist(), found["value"].to_pylist(), strict=True))


def hits(values: str) -> dict[str, float]:
    """hits("101"): items r0, r1, r2."""
    return {f"r{k}": float(value) for k, value in enumerate(values)}


def test_differences_and_intervals_worked_out_by_hand(tmp_path: Path) -> None:
    """On two rows of one seed, `new` is right on both, `old` on one: resamples have 0, 1/2 or 1 more, a quarter, half and a
    quarter of them. The arms `old` and `same` differ in nothing, so their difference has no spread."""
    runs = Runs(tmp_path)
    for step, values in (("o", "10"), ("s", "10"), ("n", "11")):
        runs.add(step, {"tr@1": hits(values)}, more=("bleu@4",))
    found = runs.compare({"old": ["o"], "same": ["s"], "new": ["n"]}, baseline="old")
    kinds = ("mean", "sd", "low", "high")
    assert [name for name in found if name.startswith("old/")] == [
        f"old/{metric} {kind}" for metric in ("tr@1", "bleu@4") for kind in kinds
    ]
    assert [found[f"old/tr@1 {kind}"] for kind in kinds] == [0.5, None, 0, 1]
    assert [found[f"new/tr@1 {kind}"] for kind in kinds] == [1, None, 1, 1]
    assert [found[f"new/bleu@4 {kind}"] for kind in kinds] == [0.5, None, None, None]
    three = ("mean", "low", "high")
    assert [found[f"new - old/tr@1 {kind}"] for kind in three] == [0.5, 0, 1]
    assert [found[f"same - old/tr@1 {kind}"] for kind in three] == [0, 0, 0]
    assert [found[f"new - old/bleu@4 {kind}"] for kind in three] == [0, None, None]
    assert not [name for name in found if name.startswith("old - ")]
    only = runs.compare({"old": ["o"], "new": ["n"]}, baseline="old", only=("bleu@4",))
    assert [only[f"new - old/bleu@4 {kind}"] for kind in three] == [0, None, None]


def test_seeds_are_paired_and_resampled(tmp_path: Path) -> None:
    """Arm b is 0.2 better on each of three seeds, whose levels are far apart: a narrow interval of a difference of two means
    with wide ones."""
    runs, rng = Runs(tmp_path), np.random.default_rng(0)
    for seed, level in enumerate((0.1, 0.4, 0.7)):
        order = rng.permutation(100)
        for arm, more in (("a", 0), ("b", 20)):
            values = order < 100 * level + more
            runs.add(
                f"{arm}{seed}", {"tr@1": {f"{seed}-{k}": float(value) for k, value in enumerate(values)}}
            )
    arms = {arm: [f"{arm}{seed}" for seed in range(3)] for arm in "ab"}
    found = runs.compare(arms, baseline="a")
    assert found["b - a/tr@1 mean"] == pytest.approx(0.2)
    low, high = (found[f"b - a/tr@1 {kind}"] for kind in ("low", "high"))
    assert low is not None
    assert high is not None
    # 1.96 standard errors of 2 drawn seeds with 100 rows each, of which a share of 0.2 is 1
    assert (high - low) / 2 == pytest.approx(1.96 * (0.2 * 0.8 / 200) ** 0.5, rel=0.1)
    assert found["a/tr@1 low"] < 0.2 < 0.6 < found["a/tr@1 high"]  # type: ignore[operator]
    assert runs.compare(arms, baseline="a") == found
    again = runs.compare(arms, baseline="a", seed=1)
    assert again != found
    assert again["b - a/tr@1 low"] == pytest.approx(low, abs=0.02)


def test_the_order_of_items_does_not_matter(tmp_path: Path) -> None:
    runs, captions = (
        Runs(tmp_path),
        {f"r{k}#{n}": float((k + n) % 3 == 0) for k in range(20) for n in range(4)},
    )
    backwards = dict(reversed(captions.items()))
    runs.add("a", {"tr@1": hits("10" * 10), "ir@1": captions})
    runs.add("b", {"ir@1": backwards, "tr@1": dict(reversed(hits("10" * 10).items()))})
    found = runs.compare({"a": ["a"], "b": ["b"]}, baseline="a")
    assert [found[f"b - a/{metric} {kind}"] for metric in ("tr@1", "ir@1") for kind in ("low", "high")] == [
        0
    ] * 4
    assert [found[f"a/ir@1 {kind}"] for kind in ("low", "high")] == [
        found[f"b/ir@1 {k}"] for k in ("low", "high")
    ]


def test_items_that_differ_are_an_error(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    runs.add("a0", {"tr@1": hits("101")})
    runs.add("b0", {"tr@1": hits("10")})
    runs.add("c0", {"ir@1": hits("101")})
    with pytest.raises(
        VlpipeError,
        match=r"a0 and b0 did not evaluate the same items: 1 differ, such as tr@1 of r2, which a0 has and b0 has not; give",
    ):
        runs.compare({"a": ["a0"], "b": ["b0"]}, baseline="a")
    with pytest.raises(VlpipeError, match=r"6 differ, such as ir@1 of r0, which c0 has and a0 has not"):
        runs.compare({"a": ["a0"], "c": ["c0"]}, baseline="a")
    with pytest.raises(
        VlpipeError,
        match=r"the items of c0 are of ir@1, those of a0 of tr@1; all seeds must have the same metrics",
    ):
        runs.compare({"a": ["a0", "c0"]}, baseline="a")


def test_an_item_that_occurs_twice_is_an_error(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    runs.add("a0", {"tr@1": hits("101")})
    runs.add("b0", {"tr@1": hits("101")})
    twice = pq.read_table(tmp_path / "b0/items.parquet")
    pq.write_table(pa.concat_tables([twice, twice.slice(0, 1)]), tmp_path / "b0/items.parquet")
    with pytest.raises(VlpipeError, match="the items of a0 or b0 have one more than once"):
        runs.compare({"a": ["a0"], "b": ["b0"]}, baseline="a")


def test_an_input_without_items_is_an_error(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    runs.add("a0", {"tr@1": hits("101")})
    del runs.items["a0"]
    with pytest.raises(
        VlpipeError, match=r"items: there is none of a0; wanted a0: {from: a0, path: items.parquet}"
    ):
        runs.compare({"a": ["a0"]}, baseline="a")
    runs.items["a0"] = File(path=str(tmp_path / "x.parquet"))
    with pytest.raises(VlpipeError, match=r"items of a0: .*x.parquet cannot be read as Parquet"):
        runs.compare({"a": ["a0"]}, baseline="a")
    pq.write_table(pa.table({"metric": ["tr@1"], "item": ["r0"]}), tmp_path / "x.parquet")
    with pytest.raises(SchemaError, match=r"items of a0 reads column 'row', which its input does not have"):
        runs.compare({"a": ["a0"]}, baseline="a")
    assert ITEMS.names == ["metric", "item", "row", "value"]


def test_what_cannot_work_is_said_while_planning() -> None:
    arms = {"none": ["a0", "a1"], "F": ["b0"]}
    assert Compare().preflight() == [
        "set `arms`, or `arm_label` if the names of the input steps have labels; neither is set"
    ]
    assert Compare(arms=arms).preflight() == []  # without a baseline arms may have any number of seeds
    assert Compare(arms=arms, baseline="non").preflight() == [
        "baseline: there is no arm 'non'; did you mean 'none'?"
    ]
    assert Compare(arms=arms, baseline="none").preflight() == [
        "arms.F has 1 step(s), the baseline none has 2; they are compared seed by seed"
    ]
    assert Compare(arms=arms, names={"f": "F"}).preflight() == [
        "names is for arm_label; without it, the names of the arms are the keys of `arms`"
    ]
    stage = Compare(arms={"none": ["a0"], "F": ["b0"]}, baseline="none").with_inputs(["a0", "b0"])
    assert stage.preflight_after({"a0": Evaluated(rate=1), "b0": Figures()}) == [
        "b0 (Figures) writes no items.parquet, which intervals need; leave out `baseline`"
    ]


def test_keys_of_earlier_comparisons_stay() -> None:
    given = {"arms": {"none": ["a0"]}, "only": ["tr@1"]}
    before = Compare(arms={"none": ["a0"]}, only=("tr@1",)).with_inputs(["a0"])
    assert isinstance(before, Compare)
    assert key_params(before) == given
    assert before.identity("evaluate.compare:Compare") == ("evaluate.compare:Compare", 1)


# Arms from the names of steps


def test_arms_are_read_off_step_names() -> None:
    steps = ["r@none-0", "r@none-1", "r@cf-1", "r@cf-0"]
    assert arms_of(steps, 0, {"cf": "C+F"}) == {"none": ["r@none-0", "r@none-1"], "C+F": ["r@cf-0", "r@cf-1"]}
    assert arms_of(steps, 1, {}) == {"0": ["r@none-0", "r@cf-0"], "1": ["r@none-1", "r@cf-1"]}
    assert arms_of(["r@a", "q@a", "q@b", "r@b"], 0, {}) == {"a": ["r@a", "q@a"], "b": ["r@b", "q@b"]}
    assert arms_of(["r@0-x-a", "r@0-y-a"], 1, {}) == {"x": ["r@0-x-a"], "y": ["r@0-y-a"]}


@pytest.mark.parametrize(
    ("steps", "label", "names", "why"),
    [
        (
            ["r@a-0", "r"],
            0,
            {},
            "arm_label: 0 is not the number of a label of input 'r', which has 0; wanted names",
        ),
        (["r@a-0"], 2, {}, "arm_label: 2 is not the number of a label of input 'r@a-0', which has 2; wanted"),
        (["r@cf-0"], 0, {"fc": "C+F"}, "names: no input has the label 'fc'; there are: cf"),
        (
            ["r@a-0", "r@b-0"],
            0,
            {"a": "x", "b": "x"},
            "names: two labels have the same name; the labels are a, b",
        ),
        (["r@a-0", "r@a-1", "r@b-0"], 0, {}, "arm_label: arm 'b' has no input that corresponds to r@a-1"),
        (["r@b-0", "r@a-0", "r@a-1"], 0, {}, "arm_label: arm 'b' has no input that corresponds to r@a-1"),
    ],
)
def test_names_that_do_not_fit(steps: list[str], label: int, names: dict[str, str], why: str) -> None:
    with pytest.raises(VlpipeError) as error:
        arms_of(steps, label, names)
    assert str(error.value).startswith(why)


def test_inputs_complete_the_parameters() -> None:
    stage = Compare(arm_label=0, names={"cf": "C+F"}, baseline="none").with_inputs(["r@none-0", "r@cf-0"])
    assert isinstance(stage, Compare)
    assert stage.arms == {"none": ["r@none-0"], "C+F": ["r@cf-0"]}
    assert stage.items == {name: File(step=name, path="items.parquet") for name in ("r@none-0", "r@cf-0")}
    with pytest.raises(VlpipeError, match="set either `arms` or `arm_label`; both are set"):
        Compare(arms={"a": ["r@a"]}, arm_label=0).with_inputs(["r@a"])
