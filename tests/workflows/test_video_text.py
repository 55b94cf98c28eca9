"""The profiles of the papers of HowTo100M, MIL-NCE, UniVL and CBT are planned, with stand-ins of the files that a user
brings.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vlpipe.models.video.s3d import S3d
from vlpipe.models.video.s3dg import S3dG
from vlpipe.pipeline.engine.plan import plan
from vlpipe.pipeline.storage.store import Store
from vlpipe.pipeline.workflow.load import Workflow
from vlpipe.stages.train.preflight import stand_in
from vlpipe.stages.train.train import Train

pytest.importorskip("av", reason="the extra `video` is not installed")
WORKFLOWS = Path(__file__).parents[2] / "workflows"
SIZES = {"howto100m_maxmargin": 4096, "howto100m_milnce": 512, "univl": 768, "cbt": 768}


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_the_papers_profile_is_planned(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("howto100m")
    for sub in ("videos", "bert-base-uncased"):
        (folder / sub).mkdir(parents=True)
    save_file({"any": torch.zeros(1)}, folder / "bert-base-uncased/model.safetensors")
    (folder / "HowTo100M_v1.csv").write_text("video_id,category_1,category_2,rank,task_id\n")
    (folder / "raw_caption.json").write_text(json.dumps({}))
    (folder / "task_ids.csv").write_text("7\tCook Onions\n")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "vocab.txt").write_text("\n".join([*special, "a"]) + "\n")
    (folder / "GoogleNews-vectors-negative300.bin").write_bytes(b"0 300\n")
    for file in ("resnet152.pth", "resnext101.pth"):
        torch.save({"conv1.weight": torch.zeros(1)}, folder / file)
    if name == "univl":
        torch.save(S3dG(num_words=3).state_dict(), folder / "s3d_howto100m.pth")
    if name == "cbt":
        torch.save(S3d().state_dict(), folder / "s3d_kinetics400.pt")
    workflow = Workflow.load(str(WORKFLOWS / f"{name}.yaml"), profile="paper", root=str(tmp_path / "root"))
    steps = {one.name: one for one in plan(workflow, Store(str(tmp_path / "root")))}
    assert "world" not in steps
    stages = {step.name: step.stage for step in workflow.steps}
    trained = [stand_in(stage, stages) for stage in stages.values() if isinstance(stage, Train)]
    assert trained
    for model in trained:
        assert all(parameter.is_meta for parameter in model.parameters())
        assert SIZES[name] in (getattr(model.config, "embed_dim", 0), getattr(model.config, "width", 0))
