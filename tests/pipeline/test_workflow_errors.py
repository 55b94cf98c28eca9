"""What a wrong workflow file says: every mistake at once, each with its line, in exactly these words."""

from __future__ import annotations

from pathlib import Path

import pytest
from workflow_toys import Check, check  # noqa: F401

from vlpipe.pipeline.errors import WorkflowError
from vlpipe.pipeline.workflow.load import Workflow


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
