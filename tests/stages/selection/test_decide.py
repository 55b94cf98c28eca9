from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.pipeline.helpers import planned, rows, run
from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.common.rule import scored
from vlpipe.stages.filter.itm import ITM, NOT_MATCHED
from vlpipe.stages.selection.decide import Decide, JudgeRule

SCORES = pa.list_(pa.float32())
SCHEMA = pa.schema(
    [("id", pa.string()), ("texts", TEXTS), scored("a", SCORES, "judge a"), scored("b", SCORES, "judge b")]
)


def judged(*rows: list[tuple[dict[str, Any], float | None, float | None]]) -> pa.Table:
    columns = [[[entry[k] for entry in row] for row in rows] for k in range(3)]
    return pa.table([[f"r{i}" for i in range(len(rows))], *columns], schema=SCHEMA)


def low(column: str, value: float, **more: Any) -> JudgeRule:
    more = {"id": f"low_{column}", **more}
    return JudgeRule(column=column, op=">=", value=value, encoder=f"judge {column}", **more)


def fates(stage: Decide, table: pa.Table) -> list[list[tuple[bool | None, str | None]]]:
    out = run_map(stage, table).table
    assert out.drop(["texts"]).equals(table.drop(["texts"]))  # the scores stay
    return [[(t["kept"], t["why"]) for t in ts or ()] for ts in out["texts"].to_pylist()]


WEB, SYNTH, HUMAN = text("w", "web"), text("s", "synth"), text("h", "human")
GONE = text("g", "web", kept=False, why="junk")


def test_thresholds_differ_by_source_and_the_first_rule_that_fails_is_the_reason() -> None:
    rules = (
        low("a", 0.5, sources=("web",), id="low_a_web"),
        low("a", 0.8, sources=("synth",)),
        low("b", 0.1),
    )
    table = judged(
        [(WEB, 0.6, 0.2), (SYNTH, 0.6, 0.2), (HUMAN, 0.0, 0.0)],
        [(WEB, 0.4, 0.0), (SYNTH, 0.9, 0.0), (GONE, 0.9, 0.9)],
        [(WEB, None, 0.5), (SYNTH, 0.8, 0.1)],
    )
    assert fates(Decide(rules=rules), table) == [
        [(True, None), (False, "low_a"), (None, None)],
        [(False, "low_a_web"), (False, "low_b"), (False, "junk")],
        [(False, "low_a_web"), (True, None)],
    ]
    out = run_map(Decide(rules=rules), table)
    assert out.counts == {
        "fails:low_a_web": 2,
        "drops:low_a_web": 2,
        "fails:low_a": 1,
        "drops:low_a": 1,
        "fails:low_b": 2,
        "drops:low_b": 1,
        "kept": 2,
    }


def test_a_text_may_have_to_pass_some_of_the_judges() -> None:
    table = judged([(WEB, 0.9, 0.0), (SYNTH, 0.0, 0.0)], [(WEB, 0.0, 0.9)])
    rules = (low("a", 0.5), low("b", 0.5))
    assert fates(Decide(rules=rules), table) == [
        [(False, "low_b"), (False, "low_a")],
        [(False, "low_a")],
    ]
    assert fates(Decide(rules=rules, min_passed=1), table) == [
        [(True, None), (False, "low_a")],
        [(True, None)],
    ]


def test_earlier_decisions_are_taken_back_if_asked_for() -> None:
    again = text("w", "web", kept=False, why="not_matched")
    table = judged([(again, 0.9, 0.9), (GONE, 0.9, 0.9)])
    assert fates(Decide(rules=(low("a", 0.5),)), table) == [[(False, "not_matched"), (False, "junk")]]
    stage = Decide(rules=(low("a", 0.5),), anew=("not_matched",))
    assert fates(stage, table) == [[(True, None), (False, "junk")]]
    assert run_map(stage, table).counts["taken_back"] == 1


def test_the_score_of_capfilts_filter_can_be_decided_by_again() -> None:
    """Another threshold than that of filter.itm, in both directions, from the scores that it stored."""
    schema = pa.schema([pa.field("id", pa.string()), scored("texts", TEXTS, ITM)])
    texts = [
        [
            text("a", "web", score=0.7, kept=True),
            text("b", "synth", score=0.4, kept=False, why=NOT_MATCHED),
            text("c", "synth", score=0.2, kept=False, why=NOT_MATCHED),
            text("d", "web", kept=False, why="junk"),
        ]
    ]
    table = pa.table([["r0"], pa.array(texts, TEXTS)], schema=schema)

    def decided(value: float) -> list[bool | None]:
        rule = JudgeRule(column="texts.score", op=">=", value=value, encoder=ITM, id=NOT_MATCHED)
        out = run_map(Decide(rules=(rule,), anew=(NOT_MATCHED,)), table).table
        return [t["kept"] for t in out["texts"].to_pylist()[0]]

    assert decided(0.3) == [True, True, False, False]
    assert decided(0.5) == [True, False, False, False]
    assert decided(0.8) == [False, False, False, False]


def test_what_cannot_be_decided_is_said_before_the_run() -> None:
    def said(*rules: JudgeRule, **more: Any) -> str:
        with pytest.raises(SchemaError) as error:
            Decide(rules=rules, **more).schema(SCHEMA)
        return str(error.value)

    assert "is for scores of judge c, but 'a' has scores of judge a" in said(
        JudgeRule(column="a", op=">=", value=0.5, encoder="judge c")
    )
    assert "add `encoder: judge a`" in said(JudgeRule(column="a", op=">=", value=0.5))
    assert "has one value per row" in said(JudgeRule(column="id", op="==", value="r0"))
    assert Decide(rules=()).preflight() == ["there is no rule; set `rules`"]
    (twice,) = Decide(rules=(low("a", 0.1), low("a", 0.2, sources=("web",)))).preflight()
    assert twice.startswith("two rules have the reject code 'low_a'")
    (other,) = Decide(rules=(low("a", 0.1, sources=("human",)),)).preflight()
    assert other == "rule low_a is for texts of human, which `sources` does not name"
    assert Decide(rules=(low("a", 0.1),), min_passed=2).preflight() == [
        "min_passed must be from 1 to 1, got 2"
    ]


def test_texts_that_were_added_after_the_judge_are_an_error() -> None:
    table = pa.table([["r0"], [[WEB, SYNTH]], [[0.5]], [[0.5, 0.5]]], schema=SCHEMA)
    with pytest.raises(VlpipeError, match="texts were added or removed after the column was computed"):
        run_map(Decide(rules=(low("a", 0.5),)), table)


TWO_JUDGES = """
name: toy
steps:
  texts: {{use: "judge_toys:Texts", num_rows: 20, shard_rows: 6}}
  one: {{use: "judge_toys:Judge", from: texts, column: one, calls: "{calls}"}}
  both: {{use: "judge_toys:Judge", from: one, column: two, times: 0.2, calls: "{calls}"}}
  decided:
    use: "selection.decide:Decide"
    from: both
    rules:
      - {{column: one, op: ">=", value: 0.5, encoder: judge 0.1, id: low_one, sources: [web], source: a guess}}
      - {{column: two, op: ">=", value: 2, encoder: judge 0.2, id: low_two}}
"""


def test_judges_stand_side_by_side_and_another_threshold_asks_none_of_them(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    steps = run(tmp_path, TWO_JUDGES.format(calls=calls))
    table = rows(tmp_path, steps["decided"])
    assert table["one"].to_pylist()[7] == pytest.approx([0.7, 0.7])
    assert table["two"].to_pylist()[7] == pytest.approx([1.4, 1.4])
    kept = [[t["kept"] for t in ts] for ts in table["texts"].to_pylist()]
    assert kept == [[i >= 10, i >= 10] for i in range(20)]
    asked = calls.read_text()
    assert asked.count("\n") == 8  # two judges, four shards

    other = TWO_JUDGES.replace("value: 2,", "value: 3,")
    todo, _ = planned(tmp_path, other.format(calls=calls))
    assert [one.name for one in todo if not one.is_done] == ["decided"]
    steps = run(tmp_path, other.format(calls=calls))
    kept = [[t["kept"] for t in ts] for ts in rows(tmp_path, steps["decided"])["texts"].to_pylist()]
    assert kept == [[i >= 15, i >= 15] for i in range(20)]
    assert calls.read_text() == asked

    said = other.replace("source: a guess", "source: another page")
    todo, _ = planned(tmp_path, said.format(calls=calls))
    assert all(one.is_done for one in todo)


def test_a_second_judge_does_not_replace_the_first(tmp_path: Path) -> None:
    text = TWO_JUDGES.replace("column: two, times", "column: one, times").format(calls=tmp_path / "calls")
    with pytest.raises(VlpipeError, match="set another `column`, and both stand side by side"):
        planned(tmp_path, text)
