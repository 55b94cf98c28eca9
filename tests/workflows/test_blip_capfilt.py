"""The main job, small: every step runs, what it leaves opens in other tools, and only what changed runs again."""

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from vlpipe.pipeline.engine.plan import plan
from vlpipe.pipeline.engine.planned import PlannedStep
from vlpipe.pipeline.storage.store import Store
from vlpipe.pipeline.workflow.load import Workflow

WORKFLOW = str(Path(__file__).parents[2] / "workflows" / "blip_capfilt.yaml")
TRAINED = ("pretrain", "captioner", "matcher", "retrain")
SMALL = (
    *("world.num_web=120", "world.num_human=40", "world.num_eval=16", "images.shard_rows=50"),
    *(f"{name}.{key}" for name in TRAINED for key in ("steps=6", "warmup_steps=2", "batch_size=16")),
    *("filtered.threshold=0.2", "retrieval_before.k_test=10", "retrieval_after.k_test=10"),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("capfilt") / "root"
    command = [
        sys.executable,
        "-m",
        "vlpipe.pipeline.cli.main",
        "run",
        WORKFLOW,
        "--local",
        "--root",
        str(folder),
    ]
    command += [part for one in SMALL for part in ("--set", one)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def planned(root: Path, *more: str) -> list[PlannedStep]:
    return plan(Workflow.load(WORKFLOW, sets=(*SMALL, *more)), Store(str(root)))


def test_every_step_is_done_and_a_second_run_has_nothing_to_do(root: Path) -> None:
    assert [one.name for one in planned(root) if not one.is_done] == []


def test_a_changed_top_p_runs_captioning_and_what_is_below(root: Path) -> None:
    todo = {one.name: one.reason for one in planned(root, "captions.top_p=0.8") if not one.is_done}
    assert next(iter(todo.items())) == ("captions@1", "parameter top_p changed 0.9 -> 0.8")
    assert set(todo) == {
        "captions@1",
        "filtered@1",
        "kept@1",
        "retrain@1",
        "retrieval_after",
        "filter_quality",
    }


def test_the_shards_of_every_step_open_in_duckdb_and_datasets(root: Path, tmp_path: Path) -> None:
    import datasets
    import duckdb

    looked = 0
    for one in planned(root):
        files = [str(root / s.path) for s in one.shards]
        if not files:
            continue
        num_rows = sum(s.num_rows for s in one.shards)
        ((counted,),) = duckdb.sql(f"SELECT count(*) FROM read_parquet({files})").fetchall()
        assert counted == num_rows, one.name
        if num_rows:
            data = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path))
            assert data.num_rows == num_rows, one.name
            looked += 1
    assert looked >= 20


def test_heavy_bytes_are_written_once_and_truth_stays_out_of_training(root: Path) -> None:
    for one in planned(root):
        names = pq.ParquetFile(root / one.shards[0].path).schema_arrow.names if one.shards else []
        assert ("image" in names) == (one.name in ("images", "human", "heldout")), one.name
        reads_truth = any(path.endswith("truth.parquet") for path in _paths(one.keyed.step.params))
        assert not reads_truth or one.name.endswith("_quality"), one.name


def _paths(value: object) -> list[str]:
    if isinstance(value, dict):
        return [p for v in value.values() for p in _paths(v)]
    if isinstance(value, list):
        return [p for v in value for p in _paths(v)]
    return [value] if isinstance(value, str) else []


def test_an_exported_captioner_and_filter_open_in_transformers(root: Path) -> None:
    from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval

    (captioner,) = root.glob("huggingface_captioner-*/artifacts")
    (matcher,) = root.glob("huggingface_filter-*/artifacts")
    assert BlipForConditionalGeneration.from_pretrained(captioner).config.text_config.vocab_size > 100
    assert BlipForImageTextRetrieval.from_pretrained(matcher).itm_head.out_features == 2
