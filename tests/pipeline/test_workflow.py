"""What a right workflow file becomes: steps, profiles, --set, rounds, files, schemas."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent
from typing import Any

import pyarrow as pa
import pytest

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File, ListFile, Weights, files_of, replace_files
from vlpipe.pipeline.shard import need, with_field
from vlpipe.pipeline.stage import GatherStage, Job, MapStage, SourceStage, Work
from vlpipe.pipeline.steps.columns import schemas
from vlpipe.pipeline.steps.step import Resources
from vlpipe.pipeline.workflow.load import Workflow, resolve_workflow
from vlpipe.pipeline.workflow.yaml_lines import Problem, parse


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
class World(Gather):
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Fetch(Source):
    list: ListFile
    serve: Mapping[str, File] = field(default_factory=dict)
    timeout_s: float = 10

    def row_schema(self) -> pa.Schema:
        return pa.schema([("id", pa.string())])

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return with_field(inp, pa.field("text", pa.string()))


@dataclass(frozen=True, kw_only=True)
class Train(Gather):
    model: Weights | dict[str, Any]
    lr: float = 1e-3

    def schema(self, inp: pa.Schema) -> pa.Schema:
        return pa.schema([("step", pa.int64())])


@dataclass(frozen=True, kw_only=True)
class Caption(RowWise):
    model: Weights
    top_p: float = 0.9
    words: tuple[str, ...] = ()

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "Caption", text=pa.string())
        return with_field(inp, pa.field("synth", pa.string()))


LOOP = f"""\
# Captions, twice.
#
# vlpipe run loop, one minute
name: loop
root: runs/here
steps:
  world:    {{use: "{__name__}:World", seed: 1}}
  images:
    use: "{__name__}:Fetch"
    list: {{from: world, path: w.tsv}}
    serve: {{a.test: {{from: world}}}}
  pretrain: {{use: "{__name__}:Train", from: [images], model: {{use: "blip:Blip", width: 64}}}}
  caption:
    use: "{__name__}:Caption"
    from: images
    model: {{from: retrain@previous, first: pretrain}}
    resources: {{cpus: 2}}
    torch_threads: 2
  retrain:  {{use: "{__name__}:Train", from: [images, caption], model: {{from: pretrain}}}}
  last:     {{use: "{__name__}:Caption", from: caption, model: {{from: retrain}}}}
repeat: {{rounds: 2, steps: [caption, retrain]}}
profiles:
  mine:
    world: null
    images: {{list: ., serve: {{a.test: .}}}}
    pretrain: {{model: {{width: 768}}}}
    repeat: {{rounds: 1}}
"""


@pytest.fixture
def loop(tmp_path: Path) -> str:
    (tmp_path / "loop.yaml").write_text(LOOP)
    return str(tmp_path / "loop.yaml")


def shape(workflow: Workflow) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    return {s.name: (s.inputs, s.artifact_steps) for s in workflow.steps}


def test_head_of_the_file(loop: str) -> None:
    workflow = Workflow.load(loop)
    assert (workflow.name, workflow.root) == ("loop", "runs/here")
    assert workflow.description == "Captions, twice.\n\nvlpipe run loop, one minute"
    assert Workflow.load(loop, root="elsewhere").root == "elsewhere"


def test_rounds_are_unrolled_and_names_resolved(loop: str) -> None:
    assert shape(Workflow.load(loop)) == {
        "world": ((), ()),
        "images": ((), ("world",)),
        "pretrain": (("images",), ()),
        "caption@1": (("images",), ("pretrain",)),  # `first`
        "retrain@1": (("images", "caption@1"), ("pretrain",)),  # the same round
        "caption@2": (("images",), ("retrain@1",)),  # `@previous`
        "retrain@2": (("images", "caption@2"), ("pretrain",)),
        "last": (("caption@2",), ("retrain@2",)),  # the last round
    }


def test_previous_as_rows(tmp_path: Path) -> None:
    file = tmp_path / "w.yaml"
    file.write_text(
        dedent(f"""\
        steps:
          images: {{use: "{__name__}:Fetch", list: {tmp_path}}}
          more: {{use: "{__name__}:Caption", from: {{from: more@previous, first: images}}, model: {tmp_path}}}
          named: {{use: "{__name__}:Caption", from: more@1, model: {tmp_path}}}
        repeat: {{rounds: 3, steps: [more]}}
        """)
    )
    inputs = {s.name: s.inputs for s in Workflow.load(str(file)).steps}
    assert inputs == {
        "images": (),
        "more@1": ("images",),
        "more@2": ("more@1",),
        "more@3": ("more@2",),
        "named": ("more@1",),
    }


def test_step_as_loaded(loop: str) -> None:
    step = Workflow.load(loop).step("caption@1")
    assert step.stage == Caption(model=Weights(step="pretrain"))
    assert step.params == {"model": {"from": "pretrain"}, "top_p": 0.9, "words": []}
    assert (step.resources, step.torch_threads) == (Resources(cpus=2), 2)
    assert (step.max_reject_rate, step.shard_rows, step.line) == (None, 10_000, 13)


def test_params_are_plain_json_and_one_spelling(loop: str) -> None:
    default, written = (
        Workflow.load(loop, sets=s).step("images").params for s in ([], ["images.timeout_s=10"])
    )
    assert json.dumps(default) == json.dumps(written)
    assert default["serve"] == {"a.test": {"from": "world"}}


def test_step_by_bare_name_is_the_last_round(loop: str) -> None:
    workflow = Workflow.load(loop)
    assert workflow.step("caption").name == "caption@2"
    with pytest.raises(VlpipeError, match=r"has no step 'captoin'; did you mean 'caption'\?"):
        workflow.step("captoin")


def test_profile_merges_removes_and_sets_rounds(loop: str, tmp_path: Path) -> None:
    workflow = Workflow.load(loop, profile="mine")
    assert [s.name for s in workflow.steps] == ["images", "pretrain", "caption@1", "retrain@1", "last"]
    assert workflow.step("pretrain").params["model"] == {"use": "blip:Blip", "width": 768}
    assert workflow.step("images").params["list"] == "."


@pytest.mark.parametrize(
    ("sets", "top_p"),
    [
        (["caption.top_p=0.5"], [0.5, 0.5]),
        (["caption@2.top_p=0.5"], [0.9, 0.5]),
        (["caption.top_p=5e-1", "rounds=1"], [0.5]),
        (["caption.top_p=0.5", "caption@1.top_p=0.6", "repeat.rounds=3"], [0.6, 0.5, 0.5]),
    ],
)
def test_set(loop: str, sets: list[str], top_p: list[float]) -> None:
    steps = Workflow.load(loop, sets=sets).steps
    assert [s.params["top_p"] for s in steps if s.name.startswith("caption@")] == top_p


def test_set_reaches_into_mappings_and_replaces_lists(loop: str) -> None:
    workflow = Workflow.load(
        loop,
        sets=[
            "pretrain.model.width=192",
            "caption.words=[a, b]",
            "last.resources.gpus=1",
            "last.model={from: pretrain}",
        ],
    )
    assert workflow.step("pretrain").params["model"] == {"use": "blip:Blip", "width": 192}
    assert workflow.step("caption").stage == Caption(model=Weights(step="retrain@1"), words=("a", "b"))
    assert workflow.step("last").resources == Resources(gpus=1)
    assert workflow.step("last").artifact_steps == ("pretrain",)


def test_set_is_laid_over_the_profile(loop: str) -> None:
    workflow = Workflow.load(loop, profile="mine", sets=["pretrain.model.width=1", "rounds=2"])
    assert workflow.step("pretrain").params["model"]["width"] == 1
    assert workflow.step("caption").name == "caption@2"


@pytest.fixture
def same(tmp_path: Path) -> str:
    text = LOOP.replace(
        f'''retrain:  {{use: "{__name__}:Train", from: [images, caption], model: {{from: pretrain}}}}''',
        "retrain:  {same_as: pretrain, from: [images, caption], model: {height: 3}}",
    )
    text = text.replace("model: {from: retrain@previous, first: pretrain}", "model: {from: pretrain}")
    assert "same_as" in text
    (tmp_path / "same.yaml").write_text(text)
    return str(tmp_path / "same.yaml")


def test_same_as_takes_the_keys_of_another_step(same: str) -> None:
    workflow = Workflow.load(same)
    assert workflow.step("retrain").params["model"] == {"use": "blip:Blip", "width": 64, "height": 3}
    assert workflow.step("retrain@1").inputs == ("images", "caption@1")
    assert workflow.step("pretrain").params["model"] == {"use": "blip:Blip", "width": 64}


def test_same_as_takes_profile_and_set_too(same: str) -> None:
    found = Workflow.load(same, profile="mine", sets=["pretrain.model.width=5", "rounds=2"])
    assert found.step("retrain@1").params["model"] == {"use": "blip:Blip", "width": 5, "height": 3}
    found = Workflow.load(same, sets=["pretrain.model.width=5", "retrain@2.model.width=6"])
    assert [found.step(f"retrain@{k}").params["model"]["width"] for k in (1, 2)] == [5, 6]


def test_another_use_or_from_replaces_the_mapping(tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text(
        LOOP.replace("{model: {width: 768}}", "{model: {from: images}}").replace(
            "serve: {a.test: .}", "serve: {}"
        )
    )
    with pytest.raises(VlpipeError) as info:
        Workflow.load(str(tmp_path / "w.yaml"), profile="mine")
    assert "pretrain.model: step 'images' (Fetch) makes rows, not artifacts" in str(
        info.value
    )  # and `use` is gone


def test_schemas_follow_the_steps(loop: str) -> None:
    columns = {name: schema.names for name, schema in schemas(Workflow.load(loop, sets=["rounds=1"])).items()}
    assert columns == {
        "world": [],
        "images": ["id", "text"],
        "pretrain": ["step"],
        "caption@1": ["id", "text", "synth"],
        "retrain@1": ["step"],
        "last": ["id", "text", "synth"],
    }


@dataclass(frozen=True)
class Part:
    weights: Weights
    scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Nested(Gather):
    one: File
    many: tuple[File, ...]
    named: Mapping[str, list[File]]
    part: Part
    none: File | None = None
    plain: str = "x"


def nested() -> Nested:
    return Nested(
        one=File("a"),
        many=(File("b"), File(step="s", path="c")),
        named={"k": [File("d")]},
        part=Part(Weights("e")),
    )


def test_files_of_finds_nested_files() -> None:
    assert files_of(nested()) == [
        ("one", File("a")),
        ("many.0", File("b")),
        ("many.1", File(step="s", path="c")),
        ("named.k.0", File("d")),
        ("part.weights", Weights("e")),
    ]


def test_replace_files_changes_files_only() -> None:
    before = nested()
    after = replace_files(before, lambda path, file: type(file)(path=f"/{path}", digest="d"))
    assert [(f.path, f.digest) for _, f in files_of(after)] == [
        (f"/{path}", "d") for path, _ in files_of(before)
    ]
    assert (type(after.part.weights), after.part.scale, after.plain) == (Weights, 1.0, "x")
    assert type(after.many) is tuple
    assert before == nested()
    assert replace_files(before, lambda _, file: file) is before


def test_yaml_values_are_what_they_look_like() -> None:
    text = "{a: 1e-4, b: 2020-01-01, c: 1:30, d: 010, e: 1_000, f: true, g: ~, h: 'no', i: -.5, on: 0x1}"
    problems: list[Problem] = []
    assert parse(text, problems) == {
        "a": 1e-4,
        "b": "2020-01-01",
        "c": "1:30",
        "d": 10,
        "e": 1000,
        "f": True,
        "g": None,
        "h": "no",
        "i": -0.5,
        "on": "0x1",
    }
    assert problems == []


def test_packaged_workflows_resolve_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "blip_capfilt.yaml").write_text("here")
    monkeypatch.setattr("importlib.resources.files", lambda package: tmp_path)
    assert (
        resolve_workflow("blip_capfilt")
        == resolve_workflow("blip_capfilt.yaml")
        == str(tmp_path / "blip_capfilt.yaml")
    )
    with pytest.raises(VlpipeError) as info:
        resolve_workflow("blip_capfit")
    assert str(info.value) == (
        "'blip_capfit' is neither a file nor a packaged workflow; did you mean 'blip_capfilt'?;"
        " packaged workflows: blip_capfilt"
    )


def test_packaged_workflows_of_folders_have_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "downstream").mkdir()
    (tmp_path / "downstream/vqa.yaml").write_text("here")
    monkeypatch.setattr("importlib.resources.files", lambda package: tmp_path)
    assert resolve_workflow("downstream/vqa") == str(tmp_path / "downstream/vqa.yaml")


def test_merge_keys_take_over_what_is_not_given(tmp_path: Path) -> None:
    from vlpipe.pipeline.workflow.yaml_lines import parse

    problems: list[Problem] = []
    value = parse("a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  y: 3\n", problems)
    assert value["b"] == {"y": 3, "x": 1}
    assert value["b"].at["x"].line == 1
    assert not problems
    parse("b:\n  <<: 3\n", problems)
    assert problems == [(2, "<<: wanted a mapping to take keys from, such as *NAME, or a list of them")]
