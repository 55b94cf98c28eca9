"""Every profile of every shipped workflow is planned: its models are built, without memory for their weights."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import save_file

import vlpipe.workflows
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.workflow.load import Workflow
from vlpipe.stages.train.preflight import stand_in
from vlpipe.stages.train.train import Train

FOLDER = Path(vlpipe.workflows.__path__[0])
SHIPPED = sorted(FOLDER.rglob("*.yaml"))
PLANNED_BY_THEIR_OWN_TESTS = (
    ("videobert", "paper"),
    ("bert_tasks", "paper"),
    ("howto100m_milnce", "paper"),
    ("howto100m_maxmargin", "paper"),
    ("univl", "paper"),
    ("cbt", "paper"),
    *((name, "paper") for name in ("captioning", "dense", "texts", "video_qa", "video_subtitles")),
)  # need weights, and videos or tasks
CASES = [
    (str(path.relative_to(FOLDER)), profile)
    for path in SHIPPED
    if path.name != "howto100m.yaml"  # needs the data set's lists: test_howto100m.py makes small ones
    for profile in (None, *(yaml.safe_load(path.read_text()).get("profiles") or ()))
    if (path.stem, profile) not in PLANNED_BY_THEIR_OWN_TESTS
]
VQA = [f"v2_{kind}_{part}2014.json" for kind in ("OpenEnded_mscoco", "mscoco") for part in ("train", "val")]
LINES = [f"{name}_{part}.jsonl" for name in ("snli_ve", "nlvr2") for part in ("train", "dev")]
FILES = (
    "captions_train2014.json",
    "captions_val2014.json",
    *VQA,
    *LINES,
)  # that a user of the profiles brings
FOLDERS = (
    "train2014",
    "val2014",
    "coco",
    "imagenet21k",
    "imagenet_train",
    "imagenet_val",
    "videos_train",
    "videos_eval",
    "flickr30k",
    "nlvr2",
    "vcr",
    "vcr1images",
)
KARPATHY = {
    "images": [
        {"filename": "1.jpg", "split": split, "sentences": []} for split in ("train", "restval", "test")
    ]
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "profile"), CASES)
def test_it_can_be_planned(
    name: str, profile: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for file in FILES:
        Path(file).write_text(json.dumps({"images": [], "annotations": []}))
    Path("dataset_coco.json").write_text(json.dumps(KARPATHY))
    Path("vocab.txt").write_text("dog\n")
    for chats in ("llava_v1_5_mix665k.json", "llava_heldout.json", "blip_laion_cc_sbu_558k.json"):
        Path(chats).write_text("[]")
    for folder in FOLDERS:
        Path(folder).mkdir()
    for part in ("train", "val"):
        Path(f"vcr/{part}.jsonl").write_text("")
    for pairs in ("pairs.parquet", "heldout.parquet", "lait.parquet"):
        pq.write_table(pa.table({"url": ["http://a.test/1.jpg"], "text": ["a dog"]}), pairs)
    judged = pa.table({"url": ["http://a.test/1.jpg"], "text": ["a dog"], "right": [True]})
    pq.write_table(judged, "truth.parquet")
    for weights in ("detector", "dalle_encoder", "uniter", "blip"):
        Path(weights).mkdir()
        save_file({"any": torch.zeros(1)}, f"{weights}/model.safetensors")
    for weights in ("blip2-itm-vit-g", "opt-2.7b", "clip-vit-large-patch14-336", "vicuna-7b-v1.5"):
        Tokenizer.train(["a dog"], 60).save(weights)
        save_file({"any": torch.zeros(1)}, f"{weights}/model.safetensors")
    Path("mobilenet_v2.npz").write_bytes(b"weights")
    workflow = Workflow.load(str(FOLDER / name), profile=profile)
    stages = {step.name: step.stage for step in workflow.steps}
    for step in workflow.steps:
        if isinstance(step.stage, Train):
            model = stand_in(step.stage, stages)
            assert model is not None
            assert all(parameter.is_meta for parameter in model.parameters())


def test_the_paper_finetunes_the_model_after_capfilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dataset_coco.json").write_text(json.dumps(KARPATHY))
    Path("coco").mkdir()
    pq.write_table(pa.table({"url": ["http://a.test/1.jpg"], "text": ["a dog"]}), "pairs.parquet")
    workflow = Workflow.load(str(FOLDER / "blip_capfilt.yaml"), profile="paper")
    stages = {step.name: step.stage for step in workflow.steps}
    for name, objectives in (("retriever", 2), ("captioner_after", 1)):
        found = stages[name]
        assert isinstance(found, Train)
        assert found.init is not None
        assert (found.init.step, len(found.objectives)) == ("retrain@1", objectives)
        assert stand_in(found, stages).config.image_size == 384
    assert vars(stages["caption_quality_after"])["model"].step == "captioner_after"
    assert vars(stages["retrieval_finetuned"])["model"].step == "retriever"
