"""`vlpipe stages`, `schema` and `init`: what there is to write in a workflow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from cli_helpers import vlpipe as call

import vlpipe.workflows
from vlpipe.pipeline.cli import describe as commands
from vlpipe.pipeline.describe.catalogue import comments, describe, entries, first_sentence, sayings
from vlpipe.pipeline.describe.schema import workflow_schema
from vlpipe.pipeline.describe.starter import GOALS, columns_of, guess_columns, guess_source, starter
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.workflow.load import Workflow

assert commands
SHIPPED = sorted(Path(vlpipe.workflows.__path__[0]).glob("*.yaml"))


def test_every_stage_of_a_shipped_workflow_is_listed() -> None:
    listed = {entry.use for entry in entries()}
    used = {
        step["use"]
        for path in SHIPPED
        for step in yaml.safe_load(path.read_text())["steps"].values()
        if "use" in step
    }
    assert used <= listed
    assert all(entry.summary for entry in entries())
    assert "lists.folder:FolderSource" not in listed  # a base class


def test_listing_imports_no_stage() -> None:
    code = (
        "import sys; from vlpipe.pipeline.describe.catalogue import entries; assert entries(); "
        "print([m for m in sys.modules if m.startswith(('vlpipe.stages.', 'torch'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_stage_is_described_by_its_class() -> None:
    found = describe("filter.itm:ItmFilter")
    by_name = {p.name: p for p in found.parameters}
    assert found.kind == "map"
    assert by_name["model"].required
    assert by_name["model"].type == "a folder, a hub id, or {from: STEP, path: NAME}"
    assert (by_name["threshold"].type, by_name["threshold"].default) == ("number", 0.5)
    assert by_name["max_text_length"].about == "tokens, including [CLS] and [SEP]; as in BLIP"
    assert by_name["precision"].about.startswith("`bf16`, half of the memory")  # said by a base class
    training = {p.name: p.about for p in describe("train.train:Train").parameters}
    assert training["accumulate"] == "micro-batches per optimiser step"  # a comment behind the field


def test_every_stage_can_be_described() -> None:
    kinds = {describe(entry.use).kind for entry in entries()}
    assert kinds == {"source", "map", "gather"}


def test_what_a_docstring_says_of_a_parameter() -> None:
    about = "Does this.\n\n    top_p: as in\n    BLIP. low, high: limits; wait_s (seconds between\n    tries) and on: yes."
    assert sayings(about, ["top_p", "low", "high", "wait_s", "absent"]) == {
        "top_p": "as in BLIP.",
        "low": "limits; wait_s (seconds between tries) and on: yes.",
        "high": "limits; wait_s (seconds between tries) and on: yes.",
        "wait_s": "seconds between tries",
    }
    assert sayings("", ["a"]) == {}
    assert sayings("a: b", []) == {}
    source = "class A:\n    # Sizes\n    a: int = 1\n    # in px\n    # or cm\n    b: int = 1\n    c: str = 'x'  # of it\n"
    assert comments(source) == {"b": "in px or cm", "c": "of it"}
    assert first_sentence("Adds `a.b`, twice\nor more. Then.\n\nMore.") == "Adds `a.b`, twice or more."


@pytest.fixture(scope="module")
def check() -> jsonschema.Draft202012Validator:
    schema = workflow_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_schema_accepts_what_is_shipped(path: Path, check: jsonschema.Draft202012Validator) -> None:
    written = json.loads(json.dumps(yaml.safe_load(path.read_text())))
    assert [error.message for error in check.iter_errors(written)] == []


STEP = {"use": "filter.itm:ItmFilter", "from": "images", "model": {"from": "matcher"}}


@pytest.mark.parametrize(
    ("file", "good"),
    [
        ({"steps": {"a": STEP}}, True),
        ({"steps": {"a": {**STEP, "threshold": "${limit}", "matrix": "limit"}}}, True),
        ({"steps": {"a": {**STEP, "resources": {"gpus": 1}}}}, True),
        ({"steps": {"a": {"use": "my_package.stages:Mine", "whatever": 1}}}, True),
        ({"steps": {"a": {"same_as": "b", "threshold": 0.4}}}, True),
        ({"steps": {"a": {**STEP, "treshold": 0.5}}}, False),
        ({"steps": {"a": {**STEP, "threshold": "high"}}}, False),
        ({"steps": {"a": {**STEP, "model": 3}}}, False),
        ({"steps": {"a": {**STEP, "resources": {"gpu": 1}}}}, False),
        ({"steps": {"a": {"from": "images"}}}, False),
        ({"steps": {"A b": STEP}}, False),
        ({"step": {"a": STEP}}, False),
        ({"steps": {}, "profile": {}}, False),
    ],
)
def test_the_schema_tells_right_from_wrong(
    file: dict[str, Any], good: bool, check: jsonschema.Draft202012Validator
) -> None:
    assert check.is_valid(file) == good


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("source", ["list", "webdataset", "img2dataset"])
def test_each_first_workflow_loads(
    source: str, goal: str, tmp_path: Path, check: jsonschema.Draft202012Validator
) -> None:
    data = tmp_path / ('pairs "1"' + (".parquet" if source == "list" else ""))
    if source == "list":
        pq.write_table(pa.table({"URL": ["http://a.test/1.jpg"], "TEXT": ["a dog"]}), data)
    else:
        data.mkdir()
        (data / "00000.tar").write_bytes(bytes(1024))
    file = tmp_path / "my: #1 {x}.yaml"
    file.write_text(starter(str(file), source, str(data), goal, "URL", "TEXT"))
    found = Workflow.load(str(file))
    assert found.name == "my: #1 {x}"
    assert found.steps[-1].name == "tars"
    assert found.description.startswith(GOALS[goal].capitalize())
    assert check.is_valid(yaml.safe_load(file.read_text()))


def test_the_columns_of_a_list_are_guessed(tmp_path: Path) -> None:
    files = {
        "a.tsv": "caption\turl\na dog\thttp://a.test/1.jpg\n",
        "b.csv": '"alt, long",URL,TEXT\n',
        "c.jsonl": '{"image_url": "x", "alt": "y"}\n',
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert [guess_columns(str(tmp_path / name)) for name in files] == [
        ("url", "caption"),
        ("URL", "TEXT"),
        ("image_url", "alt"),
    ]
    assert columns_of(str(tmp_path)) == ["caption", "url"]  # of a folder the first file
    (tmp_path / "d.csv").write_text("where,what\n")
    with pytest.raises(
        VlpipeError, match=r"no column of '.*d.csv' looks like the URL: it has 'where', 'what'"
    ):
        guess_columns(str(tmp_path / "d.csv"))
    (tmp_path / "e.jsonl").write_text("nothing\n")
    with pytest.raises(VlpipeError, match=r"the first line of '.*e.jsonl' is not JSON"):
        guess_columns(str(tmp_path / "e.jsonl"))


def test_what_a_folder_holds_is_guessed(tmp_path: Path) -> None:
    (tmp_path / "x.txt").touch()
    with pytest.raises(VlpipeError, match="has neither tars nor lists"):
        guess_source(str(tmp_path))
    with pytest.raises(VlpipeError, match="there is no file or folder"):
        guess_source(str(tmp_path / "absent"))
    (tmp_path / "0.parquet").touch()
    assert guess_source(str(tmp_path)) == "list"
    (tmp_path / "00000.tar").touch()
    assert guess_source(str(tmp_path)) == "webdataset"
    (tmp_path / "00000_stats.json").touch()
    assert guess_source(str(tmp_path)) == "img2dataset"


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pairs.tsv").write_text("url\ttext\nhttp://a.test/1.jpg\ta dog\n")
    said = call("init", "mine.yaml", "--data", "pairs.tsv", "--goal", "clean")
    assert said[-1] == "mine.yaml is written; next: vlpipe plan mine.yaml"
    assert call("plan", "mine.yaml")[-1] == "7 of 7 steps would run"
    assert "mine.yaml exists; choose another name, or remove it" in call("init", "mine.yaml", code=1)
    assert (
        "no goal 'clen'; there are clean"
        in call("init", "x.yaml", "--data", "pairs.tsv", "--goal", "clen", code=1)[-1]
    )
    listed = call("stages", "dedup.exact")
    assert any(line.strip().startswith("dedup.exact:ExactDuplicates") for line in listed)
    shown = call("stages", "filter.itm:ItmFilter")
    assert any(line.split()[:2] == ["threshold", "number"] for line in shown)
    assert json.loads(call("stages", "filter.itm:ItmFilter", "--json")[0])["version"] == 1
    assert json.loads("\n".join(call("schema")))["title"] == "vlpipe workflow"
    assert "no stage has 'nothing' in its name" in call("stages", "nothing", code=1)[-1]
    assert "did you mean" in call("stages", "filter.itm:ItmFiltr", code=1)[-1]
