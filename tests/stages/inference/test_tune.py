from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from vlpipe.pipeline.cli import commands
from vlpipe.pipeline.cli.app import app
from vlpipe.pipeline.cli.progress import limits
from vlpipe.pipeline.engine.plan import plan
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.inspect import tune
from vlpipe.pipeline.inspect.tune import Trial, advice
from vlpipe.pipeline.shard import Out
from vlpipe.pipeline.storage.store import Store
from vlpipe.pipeline.workflow.load import Workflow
from vlpipe.stages.caption.generate import Caption
from vlpipe.stages.features.embed import Embed
from vlpipe.stages.filter.itm import ItmFilter
from vlpipe.stages.inference.ahead import Ahead, Working

assert commands.app is app
Rows = Callable[..., pa.Table]
TEXT = """
steps:
  images: {use: "lists.captions:CaptionsJsonl", captions: PICTURES/list.jsonl, images: PICTURES}
  caption: {use: "caption.generate:Caption", from: images, model: MODEL, max_length: 4}
"""


@pytest.fixture
def file(tmp_path: Path, weights: Weights) -> Path:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "list.jsonl").write_text('{"file": "a.jpg", "captions": ["a dog"]}\n')
    file = tmp_path / "w.yaml"
    text = TEXT.replace("MODEL", weights.path).replace("PICTURES", str(pictures))
    file.write_text(text)
    return file


def test_the_command_prints_figures_and_the_option_and_changes_nothing(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    monkeypatch.setattr(tune, "SECONDS", 0.0)
    root = tmp_path / "root"
    done = CliRunner().invoke(app, ["tune", str(file), "caption", "--most", "40", "--root", str(root)])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    figures = [re.fullmatch(r"batch_size +(\d+) +([\d.,]+) samples/s +\S+ \S+", line) for line in lines[:2]]
    assert [int(m[1]) for m in figures if m] == [16, 32]
    chosen = re.search(r"--set caption.batch_size=(16|32); largest that fits of those tried: 32\. ", lines[2])
    assert chosen, lines
    assert not root.exists()
    sets = [f"caption.batch_size={chosen[1]}"]
    assert Workflow.load(str(file), sets=sets).step("caption").stage.batch_size == int(chosen[1])  # type: ignore[attr-defined]


def test_a_step_without_a_batch_size_says_so(file: Path, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "root"))
    one = plan(Workflow.load(str(file), root=str(tmp_path / "root")), store)[0]
    with pytest.raises(VlpipeError, match="does not say how to measure a batch"):
        list(tune.tune(one, store, 64))


def measured(monkeypatch: pytest.MonkeyPatch, compute: Callable[[int], None], most: int = 512) -> list[Trial]:
    monkeypatch.setattr(tune, "SECONDS", 0.0)
    return list(tune._measured(compute, most))


def test_it_ends_where_memory_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def compute(size: int) -> None:
        if size > 64:
            raise torch.OutOfMemoryError("CUDA out of memory")

    found = measured(monkeypatch, compute)
    assert [(t.batch_size, t.why) for t in found] == [(16, ""), (32, ""), (64, ""), (128, "out of memory")]
    trials = [Trial(16, 100), Trial(32, 150), Trial(64, 151), Trial(128, why="out of memory")]
    assert advice("itm", trials).startswith(
        "fastest (within 3 %): --set itm.batch_size=32; largest that fits: 64."
    )
    assert advice("itm", [Trial(16, why="out of memory")]) == "itm: not even 16 samples fit"


def test_other_errors_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def compute(size: int) -> None:
        raise LookupError("a bug")

    with pytest.raises(LookupError):
        measured(monkeypatch, compute)


def test_no_larger_batch_is_tried_after_one_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "TOO_LONG_S", -1.0)
    found = measured(monkeypatch, lambda size: None)
    assert [(t.batch_size, bool(t.why)) for t in found] == [(16, False), (32, True)]


@pytest.mark.parametrize("kind", ["caption", "itm", "embed"])
def test_each_stage_computes_batches_of_the_size(weights: Weights, kind: str) -> None:
    stages = {
        "caption": Caption(model=weights, max_length=3),
        "itm": ItmFilter(model=weights, max_text_length=12),
        "embed": Embed(model=weights),
    }
    trials = stages[kind].trials()
    assert trials is not None
    with trials as compute:
        compute(16)
        compute(48)
    assert Embed().trials() is None


def test_work_tells_how_long_it_waited_and_computed(weights: Weights, image_rows: Rows) -> None:
    table = image_rows([[] for _ in range(20)])
    for workers in (0, 1):
        stage = replace(Caption(model=weights, batch_size=16, max_length=3), decode_workers=workers)
        with stage.open() as work:
            assert isinstance(work, Working)
            work(table)
            spent = work.seconds()
            assert spent["waiting"] > 0
            assert spent["computing"] > 0
            assert work.seconds() == {"waiting": 0.0, "computing": 0.0}


def test_work_that_fails_counts_too() -> None:
    def fail(rows: pa.Table, ahead: Ahead) -> Out:
        raise ValueError("no")

    work = Working(fail, 1)
    with pytest.raises(ValueError, match="no"):
        work(pa.table({"id": ["a"]}))
    assert work.seconds()["computing"] > 0


def test_what_limits_a_step_is_in_its_receipts_and_its_line(file: Path, tmp_path: Path) -> None:
    from PIL import Image
    from typer.testing import CliRunner

    Image.new("RGB", (20, 20), "red").save(tmp_path / "pictures" / "a.jpg")
    done = CliRunner().invoke(app, ["run", str(file), "--local", "--root", str(tmp_path / "root")])
    assert done.exit_code == 0, done.output
    (line,) = [line for line in done.output.splitlines() if line.startswith("caption:")]
    assert re.search(
        r"model computing \d+% of the time, waiting for input \d+%, reading, writing and starting \d+%", line
    )
    (path,) = tmp_path.glob("root/caption-*/_receipts/*.json")
    text = path.read_text()
    assert '"waiting"' in text
    assert '"computing"' in text


def test_the_shares_are_of_all_seconds() -> None:
    said = limits({"waiting": 2.0, "computing": 7.0}, 10.0)
    assert said == "model computing 70% of the time, waiting for input 20%, reading, writing and starting 10%"
