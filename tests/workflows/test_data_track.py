"""The data track: entries are added as YAML, all train on as many samples, and a small run ranks them."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from vlpipe.pipeline.engine.plan import plan
from vlpipe.pipeline.storage.store import Store
from vlpipe.pipeline.workflow.load import Workflow
from vlpipe.stages.train.train import Train

FILE = Path(__file__).parents[2] / "workflows" / "data_track.yaml"
SMALL = (
    *("matrix.seed=[0, 1]", "matrix.entry=[all, truth, wrong, capfilt]"),
    *("world.num_web=60", "world.num_human=20", "world.num_eval=24", "world.two_things=0.3"),
    *("tests.num_images=6", "captions_scored.threshold=0.0", "itm_scored.threshold=0.0"),
    *(
        f"{name}.{key}"
        for name in ("scorer", "blip")
        for key in ("steps=3", "warmup_steps=1", "batch_size=16")
    ),
)
SCORES = ("mean", "retrieval", "zero_shot", "fine_grained")


def test_all_entries_train_the_same_model_on_as_many_samples() -> None:
    steps = Workflow.load(str(FILE), profile="capfilt").steps
    trained = {step.name: step for step in steps if step.name.startswith("train@")}
    assert len(trained) == 7 * 5
    assert len({step.inputs for step in trained.values()}) == len(trained)
    for step in trained.values():
        assert isinstance(step.stage, Train)
        same = {key: value for key, value in step.params.items() if key not in ("seed", "tokenizer")}
        assert same == {key: value for key, value in trained["train@all-0"].params.items() if key in same}


def test_an_entry_is_added_as_the_head_of_the_file_says(tmp_path: Path) -> None:
    text = FILE.read_text()
    (step,) = [line.removeprefix("#   ") for line in text.splitlines() if line.startswith("#   long: {")]
    (label,) = [line for line in text.splitlines() if line.startswith("#   entry: {")]
    assert label == "#   entry: {..., long: {rows: long}}"
    text = text.replace("    wrong: {rows: wrong}\n", "    wrong: {rows: wrong}\n    long: {rows: long}\n")
    text = text.replace("  train: {matrix", f"  {step}\n  train: {{matrix")
    (tmp_path / "mine.yaml").write_text(text)
    found = Workflow.load(str(tmp_path / "mine.yaml"), sets=["matrix.seed=3"])
    assert found.step("train@long-3").inputs == ("long@3",)
    assert "fine_grained@long-3" in found.step("table").inputs
    assert {step.name for step in Workflow.load(str(FILE), sets=["matrix.seed=3"]).steps} < {
        step.name for step in found.steps
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("track") / "root"
    command = [
        sys.executable,
        "-m",
        "vlpipe.pipeline.cli.main",
        "run",
        str(FILE),
        "--profile",
        "capfilt",
        "--local",
        "--root",
        str(folder),
    ]
    command += [part for one in SMALL for part in ("--set", one)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_a_small_run_ranks_its_entries(root: Path) -> None:
    workflow = Workflow.load(str(FILE), profile="capfilt", sets=SMALL, root=str(root))
    steps = {step.name: step for step in plan(workflow, Store(str(root)))}
    assert [name for name, one in steps.items() if not one.is_done] == []
    found = {
        row["name"]: row for row in pq.read_table(root / steps["table"].folder / "000000.parquet").to_pylist()
    }
    entries = list(dict.fromkeys(name.partition("/")[0] for name in found))
    assert sorted(entries) == ["all", "capfilt", "truth", "wrong"]
    assert set(found) == {
        f"{entry}/{score}{half}" for entry in entries for score in SCORES for half in ("", " +-")
    }
    means = [found[f"{entry}/mean"]["value"] for entry in entries]
    assert means == sorted(means, reverse=True)
    assert {row["num_rows"] for row in found.values()} == {2}
    for entry, mean in zip(entries, means, strict=True):
        assert mean == pytest.approx(sum(found[f"{entry}/{score}"]["value"] for score in SCORES[1:]) / 3)
    lines = (root / steps["table"].folder / "artifacts" / "table.md").read_text().splitlines()
    assert [line.split(" | ")[1] for line in lines if line[2:3].isdigit()] == entries


@pytest.mark.slow
def test_the_texts_of_an_entry_are_what_its_name_says(root: Path) -> None:
    """`truth` has the right texts alone, `wrong` the same images and none of these texts, `capfilt` its own texts, too."""
    steps = {
        step.name: step
        for step in plan(Workflow.load(str(FILE), profile="capfilt", sets=SMALL), Store(str(root)))
    }
    truth = pq.read_table(root / steps["world@0"].folder / "artifacts" / "truth.parquet").to_pylist()
    is_right = {(row["url"], row["text"]): row["right"] for row in truth}

    def texts(name: str) -> list[tuple[str, str]]:
        rows = steps[name].dataset(Store(str(root))).table(["url", "texts"]).to_pylist()
        return [(row["url"], one["text"]) for row in rows for one in row["texts"] if one["kept"] is not False]

    assert Counter(is_right[one] for one in texts("pool@0")).keys() == {True, False}
    assert {is_right[one] for one in texts("truth@0")} == {True}
    assert [url for url, _ in texts("wrong@0")] == [url for url, _ in texts("truth@0")]
    assert not set(texts("wrong@0")) & set(texts("truth@0"))
    assert set(texts("capfilt@0")) - set(texts("pool@0"))
