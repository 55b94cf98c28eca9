"""A workflow file, or a --set, that is huge, endless, or full of odd characters ends at once and says where."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from vlpipe.pipeline.errors import VlpipeError, WorkflowError, did_you_mean
from vlpipe.pipeline.stage import GatherStage, Job
from vlpipe.pipeline.workflow import yaml_lines
from vlpipe.pipeline.workflow.load import Workflow
from vlpipe.pipeline.workflow.yaml_lines import TOO_MANY, Problem, parse


@dataclass(frozen=True, kw_only=True)
class Note(GatherStage):
    text: str = ""
    number: float = 0
    options: dict[str, Any] | None = None

    def run(self, job: Job) -> None: ...

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return pa.schema([])


def load(tmp_path: Path, text: str, **options: Any) -> Workflow:
    file = tmp_path / "w.yaml"
    file.write_text(text.replace("~", __name__))
    return Workflow.load(str(file), **options)


def problems(tmp_path: Path, text: str, **options: Any) -> list[str]:
    began = time.monotonic()
    with pytest.raises(WorkflowError) as info:
        load(tmp_path, text, **options)
    assert time.monotonic() - began < 20  # seconds on a busy machine; it was minutes, or no end
    lines = str(info.value).splitlines()[1:]
    assert all(len(line) < 1100 and line.isprintable() for line in lines), lines
    return [line.removeprefix("  ") for line in lines]


def doubling(first: str, again: str) -> str:
    return first + "".join(
        again.format(k=k, below=",".join([f"*a{k - 1}"] * 10)) + "\n" for k in range(1, 12)
    )


@pytest.mark.parametrize(
    "text",
    [
        doubling("x-0: &a0 [1, 2]\n", "x-{k}: &a{k} [{below}]"),
        doubling(
            "x-0: &a0 {{y: 1}}\n".replace("{{", "{").replace("}}", "}"), "x-{k}: &a{k} {{<<: [{below}]}}"
        ),
        doubling("x-0: &a0 [1, 2]\n", "x-{k}: &a{k} {{one: [{below}], two: 1}}"),
    ],
    ids=["lists", "merges", "mappings"],
)
def test_aliases_of_aliases(tmp_path: Path, text: str) -> None:
    (said,) = problems(tmp_path, text)
    where, _, rest = said.partition(": ")
    assert rest == TOO_MANY
    assert int(where.removeprefix("line ")) in range(
        4, 8
    )  # where it becomes too much, not where the first anchor is


def test_a_long_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_lines, "MAX_NODES", 20_000)  # the real bound takes seconds
    assert problems(tmp_path, "- a\n" * 30_000) == [f"line 20000: {TOO_MANY}"]
    (said,) = problems(tmp_path, "name: " + "x" * 1_000_000)
    assert said.startswith("line 1: longer than 1,000,000 characters")


@pytest.mark.parametrize(
    "text",
    [
        "name: x\na: " + "[" * 2000,
        "name: x\na: " + "{a: " * 2000,
        "name: x\na:\n" + "- " * 2000,
        "\n" + "? " * 2000,
    ],
)
def test_brackets_in_brackets(tmp_path: Path, text: str) -> None:
    (said,) = problems(tmp_path, text)
    assert said in ("line 2: nested more than 50 levels deep", "line 3: nested more than 50 levels deep")


def test_a_chain_of_aliases_is_as_deep_as_what_it_stands_for(tmp_path: Path) -> None:
    text = "x-0: &a0 {y: 1}\n" + "".join(f"x-{k}: &a{k} {{y: *a{k - 1}}}\n" for k in range(1, 2000))
    (said,) = problems(tmp_path, text)
    assert said == "line 50: nested more than 50 levels deep"


def test_a_loop_of_a_billion_rounds(tmp_path: Path) -> None:
    text = 'steps: {a: {use: "~:Note"}}\nrepeat: {rounds: 1000000000, steps: [a]}'
    assert problems(tmp_path, text) == [
        "line 2: repeat.rounds: wanted a whole number from 1 to 1,000, got 1000000000"
    ]


def test_merge_takes_one_or_many_and_the_first_counts(tmp_path: Path) -> None:
    text = """\
x-common: &one {text: from one, number: 1}
x-more: &two {number: 2, options: {a: 1}}
steps:
  a: {use: "~:Note", <<: [*one, *two]}
  b: {<<: *two, use: "~:Note", number: 3}
  c: {use: "~:Note", <<: [], text: own}
"""
    a, b, c = load(tmp_path, text).steps
    assert a.stage == Note(text="from one", number=1, options={"a": 1})
    assert b.stage == Note(number=3, options={"a": 1})
    assert c.stage == Note(text="own")


def test_a_merge_of_something_else(tmp_path: Path) -> None:
    text = 'x-one: &one {text: a}\nx-two: &two 3\nsteps:\n  a: {use: "~:Note", <<: [*one, *two]}\n'
    assert problems(tmp_path, text) == [
        "line 2: <<: wanted a mapping to take keys from, such as *NAME, or a list of them"
    ]


def test_mistakes_in_shared_anchors_are_mistakes(tmp_path: Path) -> None:
    text = 'x-one: &one {text: a, text: b}\nsteps: {a: {use: "~:Note"}}\n'
    assert problems(tmp_path, text) == ["line 1: key 'text' appears twice; first on line 1"]


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        ("x # y", "x # y"),
        ("#fff", "#fff"),
        ("'x' # y", None),  # two things after each other: no value
        ('"x # y"', "x # y"),
        ("'#'", "#"),
        ("x#y", "x#y"),
        ("a \ue000 # b", "a \ue000 # b"),
    ],
)
def test_what_is_typed_in_a_shell_is_no_comment(tmp_path: Path, typed: str, wanted: str | None) -> None:
    text = 'steps: {a: {use: "~:Note"}}'
    if wanted is None:
        (said,) = problems(tmp_path, text, sets=[f"a.text={typed}"])
        assert said.startswith(f"--set a.text={typed}: not YAML: ")
        assert "#" in said
        assert "\ue000" not in said
    else:
        assert load(tmp_path, text, sets=[f"a.text={typed}"]).steps[0].stage == Note(text=wanted)


def test_keys_and_items_that_are_typed_keep_it_too(tmp_path: Path) -> None:
    found = load(tmp_path, 'steps: {a: {use: "~:Note"}}', sets=["a.options={b#c: [d #e, 1]}"])
    assert found.steps[0].stage == Note(options={"b#c": ["d #e", 1]})


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("name: {0}\nsteps: {{a: {{use: '~:Note', ? {0} : 1}}}}", "a.xxxxx"),
        ("name: [{0}]\nsteps: {{a: {{use: '~:Note'}}}}", "name: wanted text, got ['xxxxx"),
        ("steps: {{a: {{use: '~:{0}'}}}}", "has no class 'xxxxx"),
        ("steps: {{a: {{use: '~:Note', from: {0}}}}}", "a.from: no step 'xxxxx"),
        ("steps:\n  ? {0}\n  : {{use: '~:Note'}}", "wanted at most 100 characters"),
        ("steps: {{a: {{use: '~:Note'}}}}\nprofiles:\n  ? {0}\n  : 3", "profiles.xxxxx"),
        ("steps: {{a: {{use: '~:Note', number: {0}}}}}", 'a.number: wanted a number, got "xxxxx'),
        ("steps: {{a: {{use: '~:Note', text: !!int {0}}}}}", "cannot be used for 'xxxxx"),
    ],
)
def test_a_huge_name_or_value_is_cut(tmp_path: Path, text: str, wanted: str) -> None:
    said = problems(tmp_path, text.format("x" * 50_000))
    assert any(wanted in line for line in said), said


def test_a_huge_setting_is_cut(tmp_path: Path) -> None:
    (said,) = problems(tmp_path, 'steps: {a: {use: "~:Note"}}', sets=["a.number=" + "x" * 50_000])
    assert said.startswith("--set a.number=xxx")
    assert 'wanted a number, got "xxx' in said
    assert len(said) < 400


def test_values_that_no_file_can_hold(tmp_path: Path) -> None:
    text = 'steps:\n  a:\n    use: "~:Note"\n    number: 1e999\n    text: "\\ud800"\n    "\\udfff": 1\n'
    assert problems(tmp_path, text) == [
        "line 4: '1e999' is too large for a number",
        "line 5: '\\ud800' contains a lone surrogate (half a character)",
        "line 6: key '\\udfff' contains a lone surrogate (half a character)",
    ]


def test_escape_sequences_do_not_reach_the_terminal(tmp_path: Path) -> None:
    said = problems(tmp_path, 'steps: {"\\e[31m\\r\\nroot: x": {use: "~:Note", from: "\\e]0;title"}}')
    assert any("\\x1b[31m" in line for line in said)  # and `problems` looks that all is printable


def test_a_list_of_names_is_cut() -> None:
    whole_file = "url\r" + "http://example.org/1.jpg\r" * 100_000
    said = did_you_mean("url", [whole_file, "text"])
    assert said.startswith("; there are: text, url\\rhttp://example.org/1.jpg\\rhttp://")
    assert said.endswith("...")
    assert len(said) < 100
    many = did_you_mean("zzz", [f"column{k}" for k in range(5000)])
    assert many.endswith(" and 4,960 more")
    assert len(many) < 600


def test_errors_of_the_library_are_a_vlpipe_error(tmp_path: Path) -> None:
    with pytest.raises(VlpipeError):
        load(tmp_path, "[" * 2000)
    found: list[Problem] = []
    assert parse("", found) is None
    assert not found
