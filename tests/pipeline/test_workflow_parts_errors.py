"""What is wrong with `repeat`, `same_as`, profiles and --set, in exactly these words."""

from __future__ import annotations

from pathlib import Path

from workflow_toys import Check, check  # noqa: F401

from vlpipe.pipeline.workflow.load import Workflow

LOOP = """\
steps:
  list: {use: "~:List", seed: 1}
  score: {use: "~:Score", from: scroe, threshold: high}
  train: {use: "~:Train", from: %s}
  end: {use: "~:Train", from: score}
repeat: %s
"""


def test_a_mistake_in_a_loop_is_told_once(check: Check) -> None:
    check(
        LOOP % ("train@previous", "{rounds: 3, steps: [score, train]}"),
        [
            "line 3: score.from: no step 'scroe' above; steps above: list",
            'line 3: score.threshold: wanted a number, got "high"',
            "line 4: train.from: the input of round 1 is missing: wanted {from: train@previous, first: NAME}",
        ],
    )


def test_same_as(check: Check) -> None:
    check(
        """\
steps:
  list: {use: "~:List", seed: 1}
  score: {same_as: later, from: list}
  again: {same_as: lits}
  train: {same_as: 3}
  other: {same_as: list, sed: 1}
  later: {same_as: later}
profiles: {p: {list: null}}
""",
        [
            "line 3: score.same_as: wanted a step above, got 'later'; there are: list",
            "line 4: again.same_as: wanted a step above, got 'lits'; did you mean 'list'?",
            "line 5: train.same_as: wanted a step above, got 3; there are: again, list, score",
            "line 6: other.sed: unknown parameter; did you mean 'seed'?",
            "line 7: later.same_as: wanted a step above, got 'later'; did you mean 'other'?",
        ],
    )


def test_repeat(check: Check) -> None:
    check(
        LOOP.replace("scroe, threshold: high", "list")
        % ("score", "{round: 3, rounds: 0, steps: [lst, score, end]}"),
        [
            "line 6: repeat.round: unknown; did you mean 'rounds'?",
            "line 6: repeat.rounds: wanted a whole number from 1, got 0",
            "line 6: repeat.steps: no step 'lst'; did you mean 'list'?",
            "line 6: repeat.steps: train is between these steps; add it, or move it above or below",
        ],
    )


PROFILE = """\
steps:
  list: {use: "~:List", seed: 1}
  score: {use: "~:Score", from: list}
profiles:
  paper:
    list: null
  other:
    scroe: {threshold: 1}
"""


def test_profile(check: Check) -> None:
    other = "line 8: profiles.other.scroe: no such step; did you mean 'score'?"
    check(
        PROFILE,
        [
            "line 3: score.from: profile 'paper' removed this step: 'list'; there is no step above",
            other,
        ],
        profile="paper",
    )
    check(PROFILE, ["--profile papr: there is no such profile; did you mean 'paper'?", other], profile="papr")


ADDED = """\
steps:
  list: {use: "~:List", seed: 1}
profiles:
  more:
    score: {use: "~:Score", from: list, treshold: 1}
    again: {same_as: scroe}
    Bad: {use: "~:Score", from: list}
"""


def test_a_step_that_a_profile_adds(check: Check) -> None:
    check(
        ADDED,
        [
            "line 5: score.treshold: unknown parameter; did you mean 'threshold'?",
            "line 6: again.same_as: wanted a step above, got 'scroe'; did you mean 'score'?",
            "line 7: step name 'Bad': wanted lower-case letters, digits and _, a letter first",
        ],
        profile="more",
    )


def test_a_step_that_a_profile_adds_can_be_taken_out_of_a_merged_one(tmp_path: Path) -> None:
    text = """\
steps:
  list: {use: "~:List", seed: 1}
  old: {use: "~:Score", from: list}
profiles:
  more: &more
    score: {use: "~:Score", from: list}
  less: {<<: *more, score: null}
  loop:
    old: null
    first: {use: "~:Score", from: list}
    second: {use: "~:Score", from: first}
    repeat: {rounds: 2, steps: [first, second]}
"""
    (tmp_path / "w.yaml").write_text(text.replace("~", "workflow_toys"))
    names = {
        profile: [step.name for step in Workflow.load(str(tmp_path / "w.yaml"), profile=profile).steps]
        for profile in ("more", "less", "loop")
    }
    assert [name for name in names["more"] if not name.startswith("list")] == ["old", "score"]
    assert [name for name in names["less"] if not name.startswith("list")] == ["old"]
    assert names["loop"][-4:] == ["first@1", "second@1", "first@2", "second@2"]


def test_set(check: Check) -> None:
    check(
        """\
        steps:
          list: {use: "~:List", seed: 1}
        profiles:
          p: {}
        """,
        [
            "--set list.column.a=1: list.column is 'x', which has no keys",
            "--set list.mode=no: bare no is a boolean in some YAML and text in others;"
            ' write true or false, or "no" in quotes for the text',
            '--set list.on="x": list.on: wanted a boolean, got "x"',
            "--set list.seeed=2: list.seeed: unknown parameter; did you mean 'seed'?",
            "--set list: wanted STEP.KEY=VALUE, or rounds=N",
            "--set lst.seed=2: there is no step 'lst'; did you mean 'list'?",
            "--set rounds=2: the workflow has no `repeat`, so there are no rounds to set",
        ],
        sets=[
            "list.seeed=2",
            "lst.seed=2",
            "rounds=2",
            "list",
            "list.column=x",
            "list.column.a=1",
            "list.mode=no",
            'list.on="x"',
        ],
    )
