"""Steps that exist once per combination of values: their names, values, inputs, overrides, and every mistake."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import dedent

import pytest

from vlpipe.pipeline.errors import VlpipeError, WorkflowError
from vlpipe.pipeline.steps.checked import find_steps
from vlpipe.pipeline.workflow.load import Workflow

HEAD = """\
matrix:
  seed: [0, 1]
  arm:
    none: {rows: images, model: {width: 8}}
    cf: {rows: captions, model: {width: 9, heads: 3}}
steps:
  world: {matrix: seed, use: "~:World", seed: "${seed}"}
  images: {matrix: [seed], use: "~:Fetch", list: {from: world}}
  model: {use: "~:World"}
  captions: {matrix: seed, use: "~:Caption", from: images, model: {from: model}}
"""
TOYS = "test_workflow"


def load(text: str, **options: object) -> Workflow:
    Path("w.yaml").write_text(dedent(text).replace("~", TOYS))
    return Workflow.load("w.yaml", **options)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


TRAIN = """\
  train:
    matrix: [arm, seed]
    use: "~:Train"
    from: "${arm.rows}"
    model: {heads: "${arm.model.heads?}", text: "${arm.rows} of ${seed}"}
"""


def test_a_step_for_each_combination() -> None:
    found = load(HEAD + TRAIN)
    names = [step.name for step in found.steps]
    assert names == [
        *("world@0", "world@1", "images@0", "images@1", "model", "captions@0", "captions@1"),
        *("train@none-0", "train@none-1", "train@cf-0", "train@cf-1"),
    ]
    assert [found.step(f"world@{k}").params["seed"] for k in (0, 1)] == [0, 1]


def test_a_name_means_the_step_of_the_same_labels() -> None:
    found = load(HEAD + TRAIN)
    assert found.step("images@1").artifact_steps == ("world@1",)
    assert found.step("captions@1").inputs == ("images@1",)
    assert found.step("captions@1").artifact_steps == ("model",)
    assert found.step("train@none-1").inputs == ("images@1",)
    assert found.step("train@cf-0").inputs == ("captions@0",)


def test_values_within_texts_and_missing_ones() -> None:
    found = load(HEAD + TRAIN)
    assert found.step("train@cf-1").params["model"] == {"heads": 3, "text": "captions of 1"}
    assert found.step("train@none-0").params["model"] == {"text": "images of 0"}
    assert load(HEAD + TRAIN.replace("${arm.rows} of", "$${arm} of")).step("train@cf-1").params["model"] == {
        "heads": 3,
        "text": "${arm} of 1",
    }


def test_an_item_that_is_missing_is_left_out() -> None:
    text = '  train: {matrix: arm, use: "~:Train", from: [model, "${arm.more?}"], model: {}}\n'
    found = load(HEAD.replace("{rows: captions, ", "{rows: captions, more: {from: images, seed: 0}, ") + text)
    assert [found.step(f"train@{arm}").inputs for arm in ("none", "cf")] == [
        ("model",),
        ("model", "images@0"),
    ]


def test_a_whole_value_keeps_its_type() -> None:
    text = '  train: {matrix: arm, use: "~:Train", from: {from: images, seed: 1}, model: "${arm.model}"}\n'
    assert load(HEAD + text).step("train@cf").params["model"] == {"width": 9, "heads": 3}


@pytest.mark.parametrize(
    ("written", "inputs"),
    [
        ("train", ["train@none-0", "train@none-1", "train@cf-0", "train@cf-1"]),
        ("{from: train, arm: cf}", ["train@cf-0", "train@cf-1"]),
        ("{from: train, arm: cf, seed: 1}", ["train@cf-1"]),
        ("{from: train, seed: [1, 0]}", ["train@none-0", "train@none-1", "train@cf-0", "train@cf-1"]),
        ("[train@cf-0, train@none-1]", ["train@cf-0", "train@none-1"]),
    ],
)
def test_a_step_without_the_axis_reads_all_of_them(written: str, inputs: list[str]) -> None:
    found = load(HEAD + TRAIN + f'  last: {{use: "~:Train", from: {written}, model: {{}}}}\n')
    assert list(found.step("last").inputs) == inputs


def test_same_as_takes_the_keys_of_the_same_labels() -> None:
    more = '  again: {matrix: [arm, seed], same_as: captions, from: "${arm.rows}"}\n'
    found = load(HEAD + more, sets=["captions@1.top_p=0.5"])
    assert [found.step(f"again@cf-{k}").params["top_p"] for k in (0, 1)] == [0.9, 0.5]
    assert found.step("again@cf-1").inputs == ("captions@1",)


def test_set_and_profiles() -> None:
    profiles = "profiles: {small: {matrix: {seed: [7], arm: [cf]}, captions: {top_p: 0.1}}}\n"
    small = load(HEAD + TRAIN + profiles, profile="small")
    assert [s.name for s in small.steps][-2:] == ["captions@7", "train@cf-7"]
    assert small.step("captions@7").params["top_p"] == 0.1
    assert small.step("world@7").params["seed"] == 7
    found = load(HEAD + TRAIN, sets=["matrix.arm=none", "train@none-1.model.more=1", "train.model.all=2"])
    assert [s.name for s in found.steps][-2:] == ["train@none-0", "train@none-1"]
    assert found.step("train@none-1").params["model"]["more"] == 1
    assert "more" not in found.step("train@none-0").params["model"]
    assert found.step("train@none-0").params["model"]["all"] == 2
    assert [s.name for s in load(HEAD, sets=["matrix.seed=12"]).steps][:2] == ["world@12", "images@12"]
    assert load(HEAD + TRAIN, sets=["train@cf-1.model.text=${seed} it is"]).step("train@cf-1").params[
        "model"
    ]["text"] == ("1 it is")


def test_a_profile_adds_a_label_and_the_step_above_the_one_that_reads_it() -> None:
    profiles = """\
profiles:
  more:
    matrix: {seed: [3], arm: {none: {rows: images, model: {}}, mine: {rows: mine, model: {}}}}
    mine: {above: train, matrix: seed, use: "~:Caption", from: first, model: {from: model}}
    first: {above: captions, matrix: seed, use: "~:Caption", from: images, model: {from: model}}
    again: {same_as: train, matrix: [arm, seed]}
    second: {above: train, matrix: seed, same_as: first}
"""
    text = HEAD + TRAIN + '  end: {use: "~:Train", from: train, model: {}}\n' + profiles
    found = load(text, profile="more")
    assert [step.name for step in found.steps] == [
        *("world@3", "images@3", "model", "first@3", "captions@3", "mine@3", "second@3"),
        *("train@none-3", "train@mine-3", "end", "again@none-3", "again@mine-3"),
    ]
    assert found.step("train@mine-3").inputs == ("mine@3",)
    assert [step.name for step in load(text).steps][-1] == "end"


def test_above_what_is_no_step() -> None:
    text = (
        HEAD
        + """\
profiles:
  more:
    one: {above: captoins, use: "~:World"}
    two: {above: [captions], use: "~:World"}
    three: {above: one, use: "~:World"}
"""
    )
    problems = [
        "line 13: one.above: no step 'captoins' in the file; did you mean 'captions'?",
        "line 14: two.above: no step ['captions'] in the file; did you mean 'captions'?",
        "line 15: three.above: no step 'one' in the file; there are: captions, images, model, world",
    ]
    with pytest.raises(WorkflowError) as error:
        load(text, profile="more")
    assert [line.strip() for line in str(error.value).splitlines()[1:]] == problems
    assert len(load(text).steps) == 7


def test_labels_of_values() -> None:
    text = (
        'matrix: {top_p: [0.9, 1], of: [C+F]}\nsteps: {a: {matrix: [of, top_p], use: "~:World", seed: 1}}\n'
    )
    assert [s.name for s in load(text).steps] == ["a@c_f-0_9", "a@c_f-1"]


def test_with_rounds() -> None:
    text = HEAD + (
        '  more: {matrix: [seed], use: "~:Caption", from: {from: more@previous, first: captions}, model: {from: model}}\n'
        '  last: {matrix: [arm, seed], use: "~:Train", from: more, model: {}}\n'
        "repeat: {rounds: 2, steps: [more]}\n"
    )
    found = load(text, sets=["more@1.top_p=0.3", "more@0@2.top_p=0.2"])
    inputs = {s.name: s.inputs for s in found.steps}
    assert inputs["more@1@1"] == ("captions@1",)
    assert inputs["more@1@2"] == ("more@1@1",)
    assert inputs["last@cf-0"] == ("more@0@2",)
    tops = {name: found.step(name).params["top_p"] for name in inputs if name.startswith("more")}
    assert tops == {"more@0@1": 0.9, "more@1@1": 0.3, "more@0@2": 0.2, "more@1@2": 0.3}


def check(text: str, wanted: Sequence[str], **options: object) -> None:
    with pytest.raises(WorkflowError) as info:
        load(text, **options)
    _, *lines = str(info.value).splitlines()
    assert [line.removeprefix("  ") for line in lines] == list(wanted)


@pytest.mark.parametrize(
    ("step", "problem"),
    [
        (
            '{matrix: [sed], use: "~:World"}',
            "step.matrix: no axis 'sed'; did you mean 'seed'?",
        ),
        ('{matrix: [seed, seed], use: "~:World"}', "step.matrix: wanted names of axes, each once"),
        ('{matrix: [], use: "~:World"}', "step.matrix: wanted names of axes, each once"),
        (
            '{use: "~:World", seed: "${seed}"}',
            "step.seed: ${seed}: the step has no such axis; add matrix: [seed]",
        ),
        (
            '{matrix: arm, use: "~:Train", from: model, model: {a: "${arms.rows}"}}',
            "step.model.a: ${arms.rows}: no axis 'arms'; did you mean 'arm'?; $${ stands for ${",
        ),
        (
            '{matrix: arm, use: "~:Train", from: model, model: {a: "${arm.row}"}}',
            "step.model.a: ${arm.row}: arm 'none' has no 'row'; did you mean 'rows'?; "
            "${arm.row?} leaves the parameter out where it is missing",
        ),
        (
            '{matrix: arm, use: "~:Train", from: model, model: {a: "x${arm.model}"}}',
            "step.model.a: ${arm.model} is {'width': 8}, which cannot be a part of a text",
        ),
        (
            '{matrix: arm, use: "~:Train", from: model, model: {a: "x${arm.model.heads?}"}}',
            "step.model.a: ${arm.model.heads?} is missing, which cannot be a part of a text",
        ),
        (
            '{use: "~:Caption", from: model, model: {from: world}}',
            "step.model: 'world' is one step for each seed; write {from: world, seed: LABEL}, "
            "or matrix: [seed] for this step",
        ),
        (
            '{use: "~:Train", from: {from: world, seed: 3}, model: {}}',
            "step.from: 'world' has no seed '3'; there are: 0, 1",
        ),
        ('{use: "~:Train", from: {from: world, arm: cf}, model: {}}', "step.from: 'world' has no axis arm"),
        (
            "{matrix: arm, same_as: captions}",
            "step.same_as: 'captions' is one step for each seed; name one, such as captions@1",
        ),
    ],
)
def test_what_is_wrong_with_a_step(step: str, problem: str) -> None:
    text = HEAD + f"  step: {step}\n"
    with pytest.raises(WorkflowError) as info:
        load(text)
    said = [said for line, said in info.value.problems if line == 11]
    assert problem in said
    assert len(said) == (2 if "${arm.row}" in step or "${arm.model}" in step else 1)  # of one or both arms


def test_what_is_wrong_with_an_axis() -> None:
    text = """\
    matrix:
      Seed: [0]
      from: [0]
      many: [{a: 1}]
      same: [a, A]
      empty: []
      plain: 3
      label: {A-b: 1}
    steps: {one: {use: "~:World", matrix: [empty, plain]}}
    """
    name = "the name of an axis has lower-case letters, digits and _, and is none of from, path, first, use"
    check(
        text,
        [
            f"line 2: matrix.Seed: {name}",
            f"line 3: matrix.from: {name}",
            "line 4: matrix.many: {'a': 1} is no number or text; write LABEL: VALUE",
            "line 5: matrix.same: 'A' has the label of a value before it, 'a'",
            "line 6: matrix.empty: wanted a list of values or a mapping LABEL: VALUE, got []",
            "line 7: matrix.plain: wanted a list of values or a mapping LABEL: VALUE, got 3",
            "line 8: matrix.label: label 'A-b': wanted lower-case letters, digits and _",
        ],
    )


def test_what_is_wrong_with_a_setting() -> None:
    check(
        HEAD,
        ["--set matrix.sed=1: matrix.sed: the file has no such axis; did you mean 'seed'?"],
        sets=["matrix.sed=1"],
    )
    check(HEAD, ["--set matrix=1: wanted STEP.KEY=VALUE, or rounds=N"], sets=["matrix=1"])
    check(
        HEAD, ["--set matrix.arm=[c]: matrix.arm: no label 'c'; did you mean 'cf'?"], sets=["matrix.arm=[c]"]
    )
    text = "--set matrix.arm=[]: matrix.arm: wanted labels of the axis: none, cf"
    check(HEAD, [text], sets=["matrix.arm=[]"])
    check(HEAD, ["--set matrix.arm.cf=1: wanted matrix.AXIS=[VALUE, ...]"], sets=["matrix.arm.cf=1"])


def test_too_many_steps() -> None:
    axes = ", ".join(f"a{k}: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]" for k in range(6))
    text = f'matrix: {{{axes}}}\nsteps: {{one: {{matrix: [a0, a1, a2, a3, a4, a5], use: "~:World"}}}}\n'
    check(text, ["line 2: one.matrix: more than 1,000 steps"])


def test_without_axes_a_text_stays_as_it_is() -> None:
    text = (
        'steps:\n  model: {use: "~:World"}\n  t: {use: "~:Train", from: model, model: {a: "${seed} $${b}"}}\n'
    )
    assert load(text).step("t").params["model"] == {"a": "${seed} $${b}"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            '  y: {use: "~:Train", from: [model, {from: world, seed: []}], model: {}}\n',
            "line 11: y.from: seed: wanted a label of 'world': 0, 1",
        ),
        (
            '  y: {use: "~:Caption", from: model, model: {from: world, path: p, seed: []}}\n',
            "line 11: y.model: seed: wanted a label of 'world': 0, 1",
        ),
        (
            '  y: {matrix: arm, use: "~:Train", from: model, model: {"${arm.rows}": 1}}\n',
            "line 11: y.model: ${...} is replaced in values, not in keys",
        ),
        (
            '  w: {use: "~:Caption", from: {from: images, seed: 0}, model: {from: x@previous, first: model}}\n'
            '  x: {matrix: seed, use: "~:World"}\n'
            "repeat: {rounds: 2, steps: [w, x]}\n",
            "line 11: w.model: 'x' is one step for each seed; write {from: x, seed: LABEL}, "
            "or matrix: [seed] for this step",
        ),
    ],
)
def test_what_a_reference_cannot_mean(text: str, problem: str) -> None:
    check(HEAD + text, [problem])


def test_a_label_that_means_the_round_before() -> None:
    text = 'matrix: {arm: [previous, next]}\nsteps: {a: {matrix: arm, use: "~:World"}}\n'
    check(text, ["line 1: matrix.arm: previous cannot be a label: it means the round before"])


def test_steps_are_bounded_over_rounds_and_cells() -> None:
    text = HEAD + '  x: {matrix: [arm, seed], use: "~:World"}\n' + "repeat: {rounds: 1000, steps: [x]}\n"
    many = text.replace("seed: [0, 1]", f"seed: {list(range(40))}")
    check(many, ["line 6: 80,121 steps by rounds and matrix, at most 10,000 are allowed"])


def test_a_name_without_a_cell() -> None:
    found = load(HEAD)
    assert found.step("captions@1").name == "captions@1"
    assert [one.name for one in find_steps(found.steps, "captions")] == ["captions@0", "captions@1"]
    with pytest.raises(VlpipeError, match="'captions' is 2 steps; name one of captions@0, captions@1"):
        found.step("captions")


def test_a_step_that_a_profile_adds_into_a_loop() -> None:
    text = (
        'steps:\n  x: {use: "~:World"}\n  y: {use: "~:World"}\nrepeat: {rounds: 1, steps: [x, y]}\n'
        'profiles: {p: {c: {above: x, use: "~:World"}, repeat: {steps: [c, x, y]}}}\n'
    )
    assert [one.name for one in load(text, profile="p").steps] == ["c@1", "x@1", "y@1"]


def test_set_cannot_change_the_axes_of_a_step() -> None:
    text = "--set cannot change the axes of a step; a profile can, and --set matrix.AXIS=[...] the values of an axis"
    check(HEAD, [f"--set captions.matrix=[arm]: {text}"], sets=["captions.matrix=[arm]"])
