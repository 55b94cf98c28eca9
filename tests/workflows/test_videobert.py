"""VideoBERT's workflow: every profile is planned, the smoke profile runs a few steps, its start is BERT with centroids."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import BertConfig, BertForPreTraining

from vlpipe.models import folder
from vlpipe.models.systems.text.bert import Bert
from vlpipe.models.systems.video.videobert import VideoBert
from vlpipe.models.video.s3d import S3d
from vlpipe.pipeline.engine.plan import plan
from vlpipe.pipeline.engine.planned import PlannedStep
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.storage.store import Store
from vlpipe.pipeline.workflow.load import Workflow
from vlpipe.stages.features.start_videobert import start

pytest.importorskip("av", reason="the extra `video` is not installed")
WORKFLOW = str(Path(__file__).parents[2] / "workflows" / "videobert.yaml")
TINY = (
    *("world.num_train=6", "world.num_eval=3", "tree.k=2", "tree.levels=2", "videobert.model.num_codes=4"),
    *("encoder.steps=3", "encoder.warmup_steps=1", "encoder.batch_size=16", "encoder.model.vision_layers=1"),
    *("videobert.steps=6", "videobert.warmup_steps=1", "videobert.batch_size=8", "videobert.model.layers=1"),
    *("videobert.log_every=1", "cloze.words=[]"),
)


@pytest.mark.slow
def test_the_smoke_profile_runs(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "vlpipe.pipeline.cli.main",
        "run",
        WORKFLOW,
        "--profile",
        "smoke",
        "--local",
    ]
    command += ["--root", str(tmp_path), *(part for one in TINY for part in ("--set", one))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    workflow = Workflow.load(WORKFLOW, profile="smoke", sets=TINY, root=str(tmp_path))
    steps = {one.name: one for one in plan(workflow, Store(str(tmp_path)))}
    losses = rows_of(tmp_path, steps["videobert"])
    names = {"text": {"mlm"}, "video": {"mfm"}, "pair": {"mlm", "mfm"}, "alignment": {"match"}}
    for step in {row["step"] for row in losses}:
        (task,) = {
            row["name"].partition("/")[0] for row in losses if row["step"] == step and "/" in row["name"]
        }
        logged = {row["name"].partition("/")[2] for row in losses if row["step"] == step}
        assert names[task] <= logged
    figures = {row["name"]: row["value"] for row in rows_of(tmp_path, steps["cloze"])}
    for setting in ("paired", "shuffled", "alone", "untrained"):
        assert 0 <= figures[f"{setting}/top1"] <= figures[f"{setting}/top5"] <= 1
    assert {name for name in figures if name.startswith("gain/")} == {
        f"gain/{setting}/top{k}" for setting in ("shuffled", "alone", "untrained") for k in (1, 5)
    }


@pytest.mark.slow
def test_the_papers_profile_is_planned(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    torch.save(S3d().state_dict(), tmp_path / "s3d.pth")
    sets = [f"videos.videos={tmp_path / 'videos'}", f"s3d.videos={tmp_path / 'videos'}"]
    sets += [f"s3d.weights={tmp_path / 's3d.pth'}", f"start.bert={tmp_path}"]
    workflow = Workflow.load(WORKFLOW, profile="paper", sets=sets, root=str(tmp_path / "root"))
    steps = {one.name: one for one in plan(workflow, Store(str(tmp_path / "root")))}
    assert "world" not in steps
    assert "video_tokens" in steps["s3d_tokens"].schema_out.names
    assert "videobert" in steps


def rows_of(root: Path, step: PlannedStep) -> list[dict[str, Any]]:
    files = sorted((root / step.folder).glob("0*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def test_it_starts_from_bert_and_centroids(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=20, intermediate_size=32, max_position_embeddings=16, **sizes)
    theirs = BertForPreTraining(config)
    theirs.save_pretrained(tmp_path)
    bert = folder.load(tmp_path)
    assert isinstance(bert, Bert)
    model = VideoBert(
        vocab_size=22,
        start=1,
        end=2,
        mask=3,
        num_codes=4,
        width=8,
        layers=1,
        heads=2,
        max_text_length=6,
        max_video_length=4,
    )
    before = model.encoder.embed.words.weight.detach().clone()
    centroids = np.arange(32, dtype=np.float32).reshape(4, 8)
    centroids[2] = np.nan
    start(model, bert, centroids)
    table = model.encoder.embed.words.weight
    assert torch.equal(table[:20], theirs.bert.embeddings.word_embeddings.weight)
    assert torch.equal(table[[23, 24, 26]], torch.from_numpy(centroids)[[0, 1, 3]])
    assert torch.equal(table[[20, 21, 22, 25]], before[[20, 21, 22, 25]])
    assert torch.equal(
        model.encoder.embed.positions.weight, theirs.bert.embeddings.position_embeddings.weight[:12]
    )
    layer, other = model.encoder.blocks[0], theirs.bert.encoder.layer[0]
    assert torch.equal(layer.feed_forward.down.weight, other.output.dense.weight)
    with pytest.raises(VlpipeError, match=r"wanted centroids of shape \(4, 8\)"):
        start(model, bert, centroids[:, :4])
