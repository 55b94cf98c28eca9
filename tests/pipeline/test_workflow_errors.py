"""What a wrong workflow file says: every mistake at once, each with its line, in exactly these words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any, Literal

import pyarrow as pa
import pytest

from vlpipe.pipeline.errors import WorkflowError
from vlpipe.pipeline.files import File, Weights
from vlpipe.pipeline.shard import heavy, need, with_field
from vlpipe.pipeline.stage import GatherStage, Job, MapStage, SourceStage, Work
from vlpipe.pipeline.workflow.load import Workflow


class Source(SourceStage):
    """A stage as far as a workflow looks at it: nothing here is run."""

    def rows(self) -> Iterator[pa.Table]:
        raise NotImplementedError

    def open(self) -> AbstractContextManager[Work]:
        raise NotImplementedError


class RowWise(MapStage):
    def open(self) -> AbstractContextManager[Work]:
        raise NotImplementedError


class Gather(GatherStage):
    def run(self, job: Job) -> None:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class List(Source):
    seed: int
    mode: Literal["fast", "safe"] = "fast"
    on: bool = False
    column: str = "text"

    def row_schema(self) -> pa.Schema:
        return pa.schema([("id", pa.string())])

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return with_field(
            inp, heavy(self.column, pa.string()) if self.on else pa.field(self.column, pa.string())
        )


@dataclass(frozen=True)
class Part:
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Score(RowWise):
    model: Weights | None = None
    threshold: float = 0.5
    parts: dict[str, Any] | None = None
    part: Part = Part()
    table: File | None = None

    def __post_init__(self) -> None:
        if self.threshold > 1:
            raise ValueError(f"wanted threshold up to 1, got {self.threshold:g}")

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "Score", text=pa.string())
        return with_field(inp, pa.field("score", pa.float32()))

    def preflight(self) -> list[str]:
        return ["threshold 0 keeps everything"] if self.threshold == 0 else []


@dataclass(frozen=True, kw_only=True)
class Train(Gather):
    pass


Check = Callable[..., None]


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Check:
    """check(yaml, problems): `~` in both stands for this module's name."""
    monkeypatch.chdir(tmp_path)

    def check(text: str, wanted: Sequence[str], **options: Any) -> None:
        Path("w.yaml").write_text(dedent(text).replace("~", __name__))
        with pytest.raises(WorkflowError) as info:
            Workflow.load("w.yaml", **options)
        head, *lines = str(info.value).splitlines()
        assert [line.removeprefix("  ") for line in lines] == [w.replace("~", __name__) for w in wanted]
        assert head == f"w.yaml has {len(wanted)} problem(s):"

    return check


def test_five_mistakes_five_problems(check: Check, tmp_path: Path) -> None:
    check(
        """\
        name: five
        steps:
          list: {use: "~:List", sede: 1}
          score:
            use: "~:Score"
            from: lst
            threshold: high
          more: {use: "~:Scoer", from: score}
          last: {use: "~:Score", from: more, model: ./blip}
        """,
        [
            "line 3: list.sede: unknown parameter; did you mean 'seed'?",
            "line 6: score.from: no step 'lst' above; did you mean 'list'? (steps above: list)",
            'line 7: score.threshold: wanted a number, got "high"',
            "line 8: more.use: module ~ has no class 'Scoer'; did you mean 'Score'?",
            f"line 9: last.model: there is no file or folder './blip' (from {tmp_path});"
            " a hub id looks like ORG/NAME",
        ],
    )


def test_keys(check: Check) -> None:
    check(
        """\
        nmae: x
        root: 3
        steps:
          Score-1: {use: "~:Train"}
          rounds: {use: "~:Train"}
          none: ~
          list: {use: "~:List"}
          list: {use: "~:List", seed: 1}
        """,
        [
            "line 1: unknown key 'nmae'; did you mean 'name'?",
            "line 2: root: wanted text, got 3",
            "line 4: step name 'Score-1': wanted lower-case letters, digits and _, a letter first",
            "line 5: step name 'rounds': is reserved for the loop; give the step another name",
            "line 6: none: wanted a mapping with use: MODULE:CLASS",
            "line 7: list.seed: missing, and it has no default",
            "line 8: key 'list' appears twice; first on line 7",
        ],
    )


def test_types(check: Check) -> None:
    check(
        """\
        steps:
          list: {use: "~:List", seed: "1", mode: slow, on: 1}
          score:
            use: "~:Score"
            from: list
            threshold: 2
          other:
            use: "~:Score"
            from: list
            model: 5
            part: {wieght: 1}
            parts:
              vocab: {from: list, path: vocab.txt}
            table: {from: list}
            shard_rows: 0
            resources: {cpu: 2, actors: 0}
        """,
        [
            "line 2: list.mode: wanted 'fast' or 'safe', got \"slow\"",
            "line 2: list.on: wanted a boolean, got 1",
            'line 2: list.seed: wanted a whole number, got "1"',
            "line 3: score: wanted threshold up to 1, got 2",
            "line 10: other.model: wanted a folder, a hub id, or {from: STEP, path: NAME}, got 5",
            "line 11: other.part.wieght: unknown parameter; did you mean 'weight'?",
            "line 15: other.shard_rows: wanted a number greater than or equal to 1, got 0",
            "line 15: other: shard_rows is for steps that list or gather rows; this one keeps the shards it reads",
            "line 16: other.resources.actors: wanted a number greater than or equal to 1, got 0",
            "line 16: other.resources.cpu: unknown parameter; did you mean 'cpus'?",
        ],
    )


def test_files_from_steps(check: Check, tmp_path: Path) -> None:
    check(
        """\
        steps:
          list: {use: "~:List", seed: 1}
          score:
            use: "~:Score"
            from: list
            model: org/name
            table: {from: list}
            parts:
              vocab: {from: list, path: vocab.txt}
          other: {use: "~:Score", from: list, table: a.csv}
        """,
        [
            "line 7: score.table: step 'list' (List) makes rows, not artifacts",
            "line 9: score.parts.vocab: {from: list} is only for file parameters; this one is plain data",
            f"line 10: other.table: there is no file or folder 'a.csv' (from {tmp_path})",
        ],
    )


def test_names_of_steps(check: Check) -> None:
    check(
        """\
        steps:
          early: {use: "~:Score", from: list}
          list: {use: "~:List", seed: 1, from: early}
          alone: {use: "~:Score"}
          self: {use: "~:Score", from: self}
          twice: {use: "~:Train", from: [list, list]}
          odd: {use: "~:Train", from: [list, 3]}
          old: {use: "~:Train", from: {from: list@previous, first: list}}
        """,
        [
            "line 2: early.from: 'list' is below this step, and a step reads only steps above it; there is no step above",
            "line 3: list: List lists its own rows, so it cannot have from:",
            "line 4: alone: Score needs rows of a step above; add from: STEP",
            "line 5: self.from: 'self' is this step itself; steps above: early, list, alone",
            "line 6: twice.from: 'list' is listed twice",
            "line 7: odd.from: wanted the name of a step, a list of names,"
            " or {from: NAME@previous, first: NAME}, got 3",
            "line 8: old.from: @previous is only for steps of repeat, and 'old' is not one",
        ],
    )


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
    (tmp_path / "w.yaml").write_text(text.replace("~", __name__))
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


def test_schemas_and_preflight(check: Check) -> None:
    check(
        """\
        steps:
          list: {use: "~:List", seed: 1, column: txt}
          score: {use: "~:Score", from: list}
          below: {use: "~:Score", from: score, threshold: 0}
          full: {use: "~:List", seed: 1}
          heavy: {use: "~:List", seed: 1, on: true}
          both: {use: "~:Score", from: [full, list]}
          mixed: {use: "~:Score", from: [full, heavy]}
          fine: {use: "~:Train", from: [full, list]}
        """,
        [
            "line 3: score: Score reads column 'text', which its input does not have; did you mean 'txt'?",
            "line 4: below: threshold 0 keeps everything",  # and nothing about its columns
            "line 7: both: the inputs must have the same columns, but column 'text' is string in 'full' "
            "and not there in 'list'",
            "line 8: mixed: the inputs must have the same columns, but column 'text' is string in 'full' "
            "and heavy string in 'heavy'",
        ],
    )


def test_bare_words_and_aliases(check: Check) -> None:
    """`on` as a key is text; as a value it is refused, and that is all that is said about it."""
    check(
        """\
        steps:
          list: {use: "~:List", seed: 1, on: off, mode: no}
          score: {use: "~:Score", from: list, parts: &a {a: *a}}
        """,
        [
            "line 2: bare no is a boolean in some YAML and text in others;"
            ' write true or false, or "no" in quotes for the text',
            "line 2: bare off is a boolean in some YAML and text in others;"
            ' write true or false, or "off" in quotes for the text',
            "line 3: an alias (*) must not contain itself",
        ],
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("steps:\n\tlist: 1\n", "line 2: not YAML: a tab; YAML is indented with spaces (column 1): list: 1"),
        ("steps: a: b\n", "line 1: not YAML: mapping values are not allowed here (column 9): steps: a: b"),
        (
            "a: [1,\n",
            "line 2: not YAML: expected the node content, but found '<stream end>' (column 1):"
            " the end of the file",
        ),
        ("a: \x01\n", "line 1: not YAML: special characters are not allowed"),
        ("", "line 1: wanted a mapping with name, root, matrix, steps, repeat, profiles"),
        ("a\n---\nb\n", "line 2: not YAML: but found another document (column 1): ---"),
        ("steps: []\n", "line 1: steps: wanted a mapping NAME: {use: ..., ...}"),
    ],
)
def test_not_yaml(check: Check, text: str, problem: str) -> None:
    check(text, [problem])


def test_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_bytes(b"name: x\nroot: \xff\n")
    with pytest.raises(WorkflowError, match="line 2: the file is not UTF-8 text"):
        Workflow.load(str(tmp_path / "w.yaml"))


def test_not_a_stage(check: Check) -> None:
    check(
        """\
        steps:
          part: {use: "~:Part"}
          bare: {use: "vlpipe.pipeline.stage:MapStage"}
        """,
        [
            "line 2: part.use: '~:Part' is not a stage;"
            " wanted a dataclass that inherits from MapStage, SourceStage or GatherStage",
            "line 3: bare.use: 'vlpipe.pipeline.stage:MapStage' is not a stage;"
            " wanted a dataclass that inherits from MapStage, SourceStage or GatherStage",
        ],
    )
